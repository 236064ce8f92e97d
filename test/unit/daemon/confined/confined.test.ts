import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import t from 'tap'
import { type ConfinedOptions, runConfined } from '../../../../daemon/confined/confined.js'
import { testFolder, until } from '../../../support/daemon.js'

/** Runs the text of a function `(task, onProgress)`. */
function confine(folder: string, body: string, options: Partial<ConfinedOptions> = {}, task: unknown = null) {
  const path = join(folder, 'task.mjs')
  writeFileSync(path, `export default async (task, onProgress) => { ${body} }\n`)
  return runConfined(pathToFileURL(path), task, { what: 'work', deadlineMs: 60_000, heapMib: 64, ...options })
}

t.test('runConfined gives what came of it, and knows nothing of us (S81)', async t => {
  const folder = testFolder(t)
  const seen: number[] = []
  const task = { bytes: new Uint8Array([1, 2, 3]) }
  t.same(
    await confine(folder, 'onProgress(1); return task.bytes.map(x => x * 2)', { onProgress: n => seen.push(n) }, task),
    [2, 4, 6],
  )
  t.same(seen, [1])
  process.env.AWS_SECRET_ACCESS_KEY ??= 'secret'
  const names = (await confine(folder, 'return Object.keys(process.env)')) as string[]
  // tap adds some of its own to whatever is started.
  t.notOk(
    names.some(name => name.startsWith('AWS_') || name === 'HOME' || name === 'PATH'),
    'no variable, so no credential',
  )
  await t.rejects(confine(folder, "throw new Error('no')"), { code: 'LOCAL_IO', message: /no/ })
  await t.rejects(confine(folder, 'process.exit(3)'), { code: 'INTERNAL', message: /ended with 3/ })
  if (process.platform === 'linux')
    t.match(
      await confine(folder, "return (await import('node:fs')).readFileSync('/proc/self/limits', 'utf8')"),
      /Max core file size +0 /,
    )
})

t.test('runConfined ends what takes too long or too much, whatever it does (S81)', async t => {
  const folder = testFolder(t)
  for (const [body, words] of [
    ['for (;;);', /longer than 1.5 s/],
    ["/^(a+)+$/.test('a'.repeat(100) + 'b')", /longer than 1.5 s/],
    ['await new Promise(() => setInterval(() => {}, 1000))', /longer than 1.5 s/],
  ] as const)
    await t.rejects(confine(folder, body, { deadlineMs: 1500 }), { code: 'INVALID_ARGUMENT', message: words }, body)
  for (const body of [
    'const all = []; for (;;) all.push({ all: [all.length] })',
    "let text = 'x'; for (;;) text = JSON.stringify([text, text])",
  ])
    await t.rejects(confine(folder, body), { code: 'INVALID_ARGUMENT', message: /more than 64 MiB/ }, body)
})

t.test('runConfined leaves no process behind when the caller gives up (S81)', async t => {
  const folder = testFolder(t)
  const pidFile = join(folder, 'pid')
  const giveUp = new AbortController()
  const body = "(await import('node:fs')).writeFileSync(task, String(process.pid)); for (;;);"
  const running = confine(folder, body, { signal: giveUp.signal }, pidFile)
  running.catch(() => {})
  const pid = () => {
    try {
      return Number(readFileSync(pidFile, 'utf8'))
    } catch {
      return 0
    }
  }
  await until('it runs', () => pid() > 0)
  giveUp.abort()
  await t.rejects(running, { code: 'INTERRUPTED' })
  await until('it is gone', () => {
    try {
      return !process.kill(pid(), 0)
    } catch {
      return true
    }
  })
  await t.rejects(confine(folder, 'return 1', { signal: giveUp.signal }), { code: 'INTERRUPTED' })
})
