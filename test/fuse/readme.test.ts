/** The README's first commands, as a newcomer types them: in a clone of the repository, without S3. */
import { cpSync, existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { AS_USERS_DO, runProgram } from '../support/cli.js'
import { cannotMount, testFolder } from '../support/daemon.js'
import { bobbinPath, repository } from '../support/parts.js'

t.test("the README's commands that make and mount a package do what it says", { skip: cannotMount() }, async t => {
  const readme = readFileSync(join(repository, 'README.md'), 'utf8')
  const commands = /^## Mount\n[\s\S]*?^```sh\n([\s\S]*?)^```/m.exec(readme)?.[1] ?? ''
  t.ok(commands.split('\n').length > 6)

  const folder = testFolder(t)
  cpSync(join(repository, 'test/sample'), join(folder, 'test/sample'), { recursive: true })
  const env = { ...process.env, BOBBIN_CACHE: join(folder, 'cache'), NODE: process.execPath, BOBBIN: bobbinPath }
  const script = `cd '${folder}'\nbobbin() { "$NODE" "$BOBBIN" "$@"; }\nset -e\n${commands}`
  // However the commands end, no mount and no daemon may stay.
  t.teardown(() => runProgram(process.execPath, [bobbinPath, 'stop'], { env }))
  const [command, ...before] = AS_USERS_DO
  const { status, stdout, stderr } = await runProgram(command!, [...before, 'bash', '-c', script], { env })

  t.equal(status, 0, stderr)
  for (const said of [
    /^mounted on .*\/data: \d+ entries/m,
    /^2012-01-01,0\.0,12\.8/m,
    /user\.quilt\.hash=/,
    /^mounts\n {2}.*demo\/sample@/m,
  ])
    t.match(stdout, said)
  t.notOk(existsSync(join(folder, 'data/weather')), 'it is unmounted')
})
