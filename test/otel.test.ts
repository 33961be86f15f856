import './otel/latency.js'
import './otel/spans.js'
