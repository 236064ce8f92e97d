/** Which code a run had: real repositories, with what people do to theirs. */
import { mkdirSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { identifyCode } from '../../cli/run/code.js'
import { runProgram } from '../support/cli.js'
import { testFolder } from '../support/daemon.js'

const AUTHOR = ['-c', 'user.name=Test', '-c', 'user.email=test@test.invalid']

async function git(folder: string, ...args: string[]): Promise<string> {
  const { status, stdout, stderr } = await runProgram('git', ['-C', folder, ...AUTHOR, ...args])
  if (status !== 0) throw new Error(`git ${args.join(' ')}: ${stderr}`)
  return stdout.trim()
}

/** A repository with one commit. */
async function repository(folder: string, files: Readonly<Record<string, string>>): Promise<string> {
  mkdirSync(folder, { recursive: true })
  await git(folder, 'init', '--quiet')
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text)
  await git(folder, 'add', '--all')
  await git(folder, 'commit', '--quiet', '-m', 'code')
  return folder
}

async function identify(t: Test, folder: string) {
  return (await identifyCode(folder, { scratch: testFolder(t) }))!
}

t.test('identifyCode sees an edit of the same size in the second of the commit', async t => {
  const folder = await repository(join(testFolder(t), 'code'), { 'a.txt': 'one' })
  // By the clock, without waiting for the moment.
  const second = 1_700_000_000
  await git(folder, 'config', 'core.trustctime', 'false')
  utimesSync(join(folder, 'a.txt'), second, second)
  await git(folder, 'add', '--all')
  writeFileSync(join(folder, 'a.txt'), 'two')
  utimesSync(join(folder, 'a.txt'), second, second)
  utimesSync(join(folder, '.git/index'), second, second)
  const { identity } = await identify(t, folder)
  t.equal(identity.isDirty, true)
  t.match(await git(folder, 'status', '--porcelain'), /a\.txt/, 'as git itself does')
})
