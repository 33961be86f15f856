import './admin/page.js'
import './admin/routes.js'
