import './log/cursor.js'
import './log/event-log.js'
import './log/ring.js'
import './log/timeout.js'
