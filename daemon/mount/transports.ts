import { BobbinError } from '../model/index.js'
import { fuseNative } from './fuse-native.js'
import type { NativeTransport } from './native.js'
import type { FuseTransport, TransportName } from './transport.js'

/** By default the best one that there is: bobbin-fuse, where it has started us. Throws FUSE_UNAVAILABLE. */
export function transportNamed(name: TransportName | undefined, native: NativeTransport | undefined): FuseTransport {
  switch (name) {
    case undefined:
      return native ?? fuseNative
    case 'fuse-native':
      return fuseNative
    case 'native':
      if (native !== undefined) return native
      throw new BobbinError(
        'FUSE_UNAVAILABLE',
        'this daemon was not started by bobbin-fuse, so it cannot mount through it: bobbin doctor says what is missing',
      )
    default:
      return name satisfies never
  }
}
