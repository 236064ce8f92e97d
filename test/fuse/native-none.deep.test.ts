import { testTransport } from '../suites/fuse-transport.js'

testTransport('native', 'none')
