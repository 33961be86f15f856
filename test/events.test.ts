import './events/catalogue.js'
import './events/event.js'
import './events/message.js'
import './events/topic.js'
