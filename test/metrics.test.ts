import './metrics/collected-metric.js'
import './metrics/dashboard.js'
import './metrics/histogram.js'
import './metrics/registries.js'
