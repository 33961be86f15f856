import './streams/consume.js'
