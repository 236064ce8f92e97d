/**
 * A daemon for bobbin-fuse that serves one mount: the object of `slow` takes SLOW_MS and says so all the time, that of
 * `stuck` never comes and nothing is said of it. Others are fetched as always.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { Fetcher } from '../../daemon/fetch/fetcher.js'
import { parsePackageName } from '../../daemon/model/index.js'
import { NativeTransport } from '../../daemon/mount/native.js'
import type { ObjectProvider } from '../../daemon/mount/transport.js'
import { openPackage } from '../../daemon/package/package-cache.js'
import { parseRegistry } from '../../daemon/registry/reference.js'
import { createSource } from '../../daemon/source/index.js'
import { openStore } from '../../daemon/store/index.js'
import { Workers } from '../../daemon/work/workers.js'
import { rememberingLog } from './objects.js'

const [cacheDir, registry, name, topHash, mountpoint, slowMs] = process.argv.slice(2) as [
  string,
  string,
  string,
  string,
  string,
  string,
]
const log = rememberingLog()
const native = await NativeTransport.connect({
  linkFd: Number(process.env.BOBBIN_LINK_FD),
  cacheDir,
  version: 'test',
  log,
})
const sourceConfig = { ioTimeoutMs: 60_000, offline: false }
const store = await openStore(cacheDir, { bytesMax: 1e9, freeBytesMin: 0 })
const fetcher = new Fetcher({ store, workers: new Workers(sourceConfig) })
const objects: ObjectProvider = {
  async open(spec, options) {
    if (options.label === 'stuck') return await new Promise(() => {})
    for (const end = Date.now() + Number(slowMs); options.label === 'slow' && Date.now() < end; await sleep(100))
      options.onProgress?.()
    return await fetcher.open(spec, options)
  },
  stateOf: spec => store.stateOf(spec),
  roomBytes: () => store.roomBytes(),
}
native.start([])
const opened = await openPackage(
  {
    registry: parseRegistry(registry),
    name: parsePackageName(name),
    revision: { kind: 'hash', prefix: topHash },
  },
  { cacheDir, source: createSource(sourceConfig) },
)
await native.mount({
  mountpoint,
  opened,
  objects,
  log,
  mountedAt: Date.now(),
  openMode: 'auto',
  note: '',
  options: { allowOther: false, uid: 0, gid: 0, umask: 0, listAttributes: false },
})
await native.gone
process.exit(0)
