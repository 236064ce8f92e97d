import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import t from 'tap'
import { WORKER_FLAGS } from '../../../../daemon/model/index.js'

t.test('threads of a pool import ES modules: one that is ended while it requires them ends the process', async t => {
  const worker = new URL('../../../../daemon/work/worker.js', import.meta.url).pathname
  const script = `const { parentPort } = require('node:worker_threads')
try {
  require(${JSON.stringify(worker)})
  parentPort.postMessage('required')
} catch (error) {
  parentPort.postMessage(error.code)
}`
  const thread = new Worker(script, { eval: true, execArgv: WORKER_FLAGS })
  t.same(await once(thread, 'message'), ['ERR_REQUIRE_ESM'])
})
