import './streams/source-reader.js'
