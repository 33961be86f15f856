import './events/event.js'
import './events/topic.js'
