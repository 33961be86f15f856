import './admin/figures.js'
import './admin/page.js'
import './admin/routes.js'
