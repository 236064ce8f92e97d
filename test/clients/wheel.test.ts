import { cpSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import t from 'tap'
import { type Outcome, runProgram } from '../support/cli.js'
import { part, repository } from '../support/parts.js'

const sources = join(repository, 'loader/python')

async function succeeds(command: string, ...args: string[]): Promise<Outcome> {
  const outcome = await runProgram(command, args, { env: { ...process.env, PYTHONPATH: '' } })
  if (outcome.status !== 0) throw new Error(`${command} ${args.join(' ')}: ${outcome.stdout}${outcome.stderr}`)
  return outcome
}

t.test('the wheel is built, installed, and needs nothing else', async t => {
  const folder = mkdtempSync(join(tmpdir(), 'bobbin-wheel-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  // The build leaves folders beside its sources.
  cpSync(sources, join(folder, 'python'), { recursive: true })
  const build = ['-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '--wheel-dir', folder]
  await succeeds(part('loader'), ...build, join(folder, 'python'))
  const wheels = readdirSync(folder).filter(name => name.endsWith('.whl'))
  t.match(wheels, [/^bobbin_loader-\d+\.\d+\.\d+-py3-none-any\.whl$/])

  const fresh = join(folder, 'fresh')
  await succeeds('python3', '-m', 'venv', fresh)
  const python = join(fresh, 'bin/python')
  await succeeds(python, '-m', 'pip', 'install', '--quiet', '--no-index', join(folder, wheels[0]!))
  const program = 'import bobbin_loader, os; print(os.path.exists(os.path.join(bobbin_loader.__path__[0], "py.typed")))'
  t.equal((await succeeds(python, '-c', program)).stdout, 'True\n', 'it says that it is typed')
})

t.test('the client is typed, for every Python from 3.9 on', async t => {
  const run = async (program: string, ...args: string[]) => {
    const { status, stdout, stderr } = await runProgram(join(dirname(part('loader')), program), args)
    t.equal(status, 0, `${program}: ${stdout}${stderr}`)
  }
  const config = join(sources, 'pyproject.toml')
  await run('mypy', '--cache-dir=/dev/null', '--config-file', config, join(sources, 'src'))
  await run('vermin', '--target=3.9-', '--violations', join(sources, 'src'))
  await run('ruff', 'check', '--no-cache', sources)
})
