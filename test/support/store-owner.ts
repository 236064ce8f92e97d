/**
 * A process to be killed: owns the store of a cache, fetches from a server that never ends its
 * answer, and says on stdout when it is in the middle of it.
 */
import { readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { Fetcher } from '../../daemon/fetch/fetcher.js'
import type { ObjectSpec } from '../../daemon/model/index.js'
import { acquireOwnership, openStore } from '../../daemon/store/index.js'
import { Workers } from '../../daemon/work/workers.js'

const [cacheDir, specsText] = process.argv.slice(2)
const { complete, endless } = JSON.parse(specsText!) as { complete: ObjectSpec[]; endless: ObjectSpec }

await acquireOwnership(cacheDir!, { pid: process.pid, version: 'test', startedAt: Date.now() })
const store = await openStore(cacheDir!, { bytesMax: 1e9, freeBytesMin: 0 })
const fetcher = new Fetcher({ store, workers: new Workers({ ioTimeoutMs: 60_000 }) })
for (const spec of complete) await (await fetcher.open(spec)).close()
fetcher.open(endless).catch(error => console.log(`failed: ${error.message}`))
const tmp = join(cacheDir!, 'tmp')
const timer = setInterval(() => {
  if (!readdirSync(tmp).some(name => statSync(join(tmp, name)).size > 0)) return
  clearInterval(timer)
  console.log('in the middle')
}, 10)
setInterval(() => {}, 1000)
