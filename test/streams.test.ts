import './streams/end.js'
import './streams/source.js'
