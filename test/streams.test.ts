import './streams/control.js'
import './streams/end.js'
import './streams/source.js'
