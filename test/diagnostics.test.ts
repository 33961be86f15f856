import './diagnostics/allocation.js'
import './diagnostics/channels.js'
import './diagnostics/tally.js'
import './diagnostics/telemetry.js'
