/** The command of a run, started by this process. */
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { launch } from '../../../../cli/run/launch.js'
import { testFolder } from '../../../support/daemon.js'

function run(t: Test, ...command: string[]) {
  const folder = testFolder(t)
  const logs = { stdout: join(folder, 'stdout.log'), stderr: join(folder, 'stderr.log') }
  return { logs, ended: launch(command, { env: process.env, logs, isJson: true, onLogCut() {} }) }
}

t.test('launch leaves no moment in which a signal would end us', async t => {
  const listener = () => {}
  process.on('SIGTERM', listener)
  const counts: number[] = []
  const onRemoved = (signal: string) => {
    if (signal === 'SIGTERM') counts.push(process.listenerCount('SIGTERM'))
  }
  process.on('removeListener', onRemoved)
  t.equal(await run(t, 'true').ended, 0)
  process.off('removeListener', onRemoved)
  t.ok(counts.length > 0, 'ours takes the place of what was there, and gives it back')
  t.notOk(counts.includes(0))
  t.ok(process.listeners('SIGTERM').includes(listener))
  process.off('SIGTERM', listener)
})

t.test(
  'launch goes on when a signal cannot be passed on',
  {
    skip: process.getuid?.() !== 0 && 'needs root, to be two others',
  },
  async t => {
    const { ended } = run(t, 'setpriv', '--reuid=65534', '--clear-groups', 'sleep', '1')
    await new Promise(resolve => setTimeout(resolve, 500))
    process.seteuid!(65_533)
    t.teardown(() => process.seteuid!(0))
    t.doesNotThrow(() => process.emit('SIGTERM', 'SIGTERM'))
    process.seteuid!(0)
    t.equal(await ended, 0)
  },
)
