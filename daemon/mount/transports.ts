import { fuseNative } from './fuse-native.js'
import type { FuseTransport, TransportName } from './transport.js'

const transports = { 'fuse-native': fuseNative } as const satisfies Record<TransportName, FuseTransport>

/** By default the best one that there is. */
export function transportNamed(name: TransportName = 'fuse-native'): FuseTransport {
  return transports[name]
}
