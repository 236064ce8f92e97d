/** Images that cannot be had, by a program that says what docker and podman say then. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { identifyImage } from '../../../../cli/run/image.js'
import { runQuietly } from '../../../../cli/run/process.js'
import { testFolder } from '../../../support/daemon.js'

const pulling = (t: Test, said: string) => {
  const program = join(testFolder(t), 'engine')
  writeFileSync(program, `#!/bin/sh\ncase $1 in image) exit 1;; esac\ncat >&2 <<'END'\n${said}\nEND\nexit 125\n`, {
    mode: 0o755,
  })
  return identifyImage(program, 'registry.test/team/timeout:1', { signal: AbortSignal.timeout(60_000), onPull() {} })
}

t.test('identifyImage tells a registry that cannot be reached now from an image that is not there', async t => {
  for (const said of [
    'Error response from daemon: Get "https://registry.test/v2/": dial tcp: lookup registry.test on 10.0.0.2:53: no such host',
    'Error response from daemon: Get "https://registry.test/v2/": dial tcp 10.0.0.1:443: connect: connection refused',
    'Error response from daemon: Get "https://registry.test/v2/": net/http: TLS handshake timeout',
    'Error response from daemon: Get "https://registry.test/v2/": net/http: request canceled while waiting for connection (Client.Timeout exceeded while awaiting headers)',
    'Error: initializing source docker://registry.test/team/timeout:1: pinging container registry registry.test: Get "https://registry.test/v2/": dial tcp 10.0.0.1:443: i/o timeout',
  ])
    await t.rejects(pulling(t, said), { code: 'UPSTREAM_UNAVAILABLE', message: /registry\.test/ }, said)
  for (const said of [
    'Error response from daemon: manifest for registry.test/team/timeout:1 not found: manifest unknown: manifest unknown',
    'Error response from daemon: pull access denied for registry.test/team/timeout, repository does not exist or may require docker login',
    'no space left on device',
  ])
    await t.rejects(pulling(t, said), { code: 'OBJECT_GONE' }, said)
})

t.test('runQuietly has a time limit of its own only for what no signal can end', async t => {
  const timers = () => process.getActiveResourcesInfo().filter(name => name === 'Timeout').length
  const before = timers()
  const { signal } = new AbortController()
  const running = [runQuietly('sleep', ['0.2'], { signal })]
  t.equal(timers(), before)
  running.push(runQuietly('sleep', ['0.2']))
  t.equal(timers(), before + 1)
  await Promise.all(running)
  t.match(await runQuietly('sleep', ['60'], { signal, timeoutMs: 100 }), { status: null })
})
