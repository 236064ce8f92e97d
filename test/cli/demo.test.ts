import { spawn } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { cannotMount } from '../support/can-mount.js'

const DEMO = fileURLToPath(new URL('../demo/demo.js', import.meta.url))

t.test('the demo does what it says, and leaves nothing behind', { skip: cannotMount() }, async t => {
  const left = () => readdirSync(tmpdir()).filter(name => name.startsWith('bobbin-demo-')).length
  const before = left()
  const { status, output } = await runDemo()
  t.equal(status, 0, output)
  for (const line of [
    '7b6d79ecdbe41f4ebd18c3aff9e22a50387ad8ab0fe9a59b80c08cac395b7385',
    'mean of temp_max over 1461 days: 16.44',
    'Read-only file system',
    'is checked again',
    'Input/output error',
    'it was changed or cut, and nothing of it is used',
    'changed  climate/global-temp.csv',
    'Everything did what it should',
  ]) {
    t.match(output, line)
  }
  t.equal(left(), before)
})

t.test('the demo can be interrupted, and leaves nothing behind', { skip: cannotMount() }, async t => {
  const { status, folder } = await runDemo('mounted on')
  t.equal(status, 130)
  t.notOk(readdirSync(tmpdir()).includes(folder), 'its folder is gone')
})

/** `interruptAt`: what it has printed when Ctrl-C comes. */
function runDemo(interruptAt?: string): Promise<{ status: number | null; output: string; folder: string }> {
  const before = new Set(readdirSync(tmpdir()))
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [DEMO], { stdio: ['ignore', 'pipe', 'pipe'] })
    let output = ''
    let folder = ''
    const take = (chunk: Buffer) => {
      output += chunk
      folder ||= readdirSync(tmpdir()).find(name => name.startsWith('bobbin-demo-') && !before.has(name)) ?? ''
      if (interruptAt !== undefined && output.includes(interruptAt)) child.kill('SIGINT')
    }
    child.stdout.on('data', take)
    child.stderr.on('data', take)
    child.once('error', reject)
    child.once('close', status => resolve({ status, output, folder }))
  })
}
