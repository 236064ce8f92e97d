import { testTransport } from '../suites/fuse-transport.js'

// The fastest that is possible here: passthrough, for root on Linux 6.9 and newer.
testTransport('native')
