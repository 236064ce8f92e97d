/** A process that fetches, evicts, touches and restarts without end: the owner of a store whose power is to be cut. */
import { randomInt } from 'node:crypto'
import { utimesSync } from 'node:fs'
import { Fetcher } from '../../daemon/fetch/fetcher.js'
import type { ObjectSpec } from '../../daemon/model/index.js'
import { openStore } from '../../daemon/store/index.js'
import { Workers } from '../../daemon/work/workers.js'

const [cacheDir, bytesMax, syncProgram] = process.argv.slice(2) as [string, string, string?]
const specs: ObjectSpec[] = JSON.parse(process.env.SPECS!)
const workers = new Workers({ ioTimeoutMs: 60_000 }, { threads: 1 })
for (;;) {
  const store = await openStore(cacheDir, { bytesMax: Number(bytesMax), freeBytesMin: 0, syncAfterMs: 30, syncProgram })
  const fetcher = new Fetcher({ store, workers })
  console.log('a session')
  for (let i = 0; i < 300; i++) {
    const opened = await Promise.all(Array.from({ length: 4 }, () => fetcher.open(specs[randomInt(specs.length)]!)))
    if (randomInt(20) === 0) utimesSync(opened[0]!.path, new Date(), new Date())
    for (const object of opened) await object.close()
  }
  await fetcher.close()
  await store.close()
}
