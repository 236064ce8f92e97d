/** Each fuzz target for a while: longer in CI than at a desk. `node test/native/fuzz.mjs --seconds 3600` is for nights. */
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import t from 'tap'
import { runProgram } from '../support/cli.js'
import { repository } from '../support/parts.js'

const SECONDS = process.env.CI ? 30 : 5
/** The first one builds them all. */
const TIMEOUT_MS = 600_000

t.setTimeout(3 * TIMEOUT_MS)

function lacking(): string | false {
  const isThere = (name: string) => spawnSync(name, ['--version']).status === 0
  if (!isThere('cmake')) return 'no cmake here'
  return !['clang++-14', 'clang++'].some(isThere) && 'no clang++ here'
}

for (const target of ['index', 'protocol', 'link']) {
  t.test(`the fuzzer finds nothing in ${target} within ${SECONDS} s`, { skip: lacking() }, async t => {
    const args = [join(repository, 'test/native/fuzz.mjs'), '--seconds', String(SECONDS), target]
    const { status, stdout, stderr } = await runProgram(process.execPath, args, { timeoutMs: TIMEOUT_MS })
    t.comment(stdout.trim().split('\n').at(-1))
    t.equal(status, 0, 'nothing', { said: (stdout + stderr).slice(-4000) })
    t.match(stdout, new RegExp(`^${target}: nothing found`, 'm'), 'and it has looked')
  })
}
