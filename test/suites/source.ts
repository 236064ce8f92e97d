/** What every `Source` must do (daemon/model/source.ts): run it for another one by calling `testSource` with a place of its own. */
import type { Test } from 'tap'
import {
  BobbinError,
  type ErrorCode,
  type PhysicalKey,
  type ReadOptions,
  type Source,
} from '../../daemon/model/index.js'

export interface SourcePlace {
  readonly source: Source
  /** Where `name` lies, a path with slashes. */
  keyOf(name: string): PhysicalKey
  write(name: string, bytes: Uint8Array): Promise<void>
  remove(name: string): Promise<void>
}

const BODY = Buffer.from(Array.from({ length: 300_000 }, (_, i) => i % 251))
const ODD_NAMES = [
  'a b',
  'a+b',
  'a%20b',
  'e\u0301',
  'q"\'`$&;,:=@?#!()*[]{}|^~<>\\',
  'new\nline\ttab',
  '\u{1f600}',
  'é/ü',
  'x/y/z',
]

export async function testSource(t: Test, open: (t: Test) => Promise<SourcePlace>): Promise<void> {
  const { source, keyOf, write, remove } = await open(t)
  await write('objects/big', BODY)
  await write('objects/empty', Buffer.alloc(0))
  for (const name of ODD_NAMES) await write(`odd/${name}`, Buffer.from(`<${name}>`))

  const read = async (name: string, options: ReadOptions = {}) => {
    const chunks: Uint8Array[] = []
    for await (const chunk of (await source.read(keyOf(name), options)).chunks) chunks.push(chunk)
    return Buffer.concat(chunks)
  }
  const list = async (name: string, namePrefix?: string) => {
    const names: string[] = []
    for await (const { name: found, isFolder } of source.list(
      keyOf(name),
      namePrefix === undefined ? {} : { namePrefix },
    ))
      names.push(isFolder ? `${found}/` : found)
    return names
  }

  t.test('read gives the whole object, or a range of it, and fewer bytes only at its end', async t => {
    t.ok((await read('objects/big')).equals(BODY))
    t.equal((await read('objects/empty')).length, 0)
    for (const [start, length] of [
      [0, 1],
      [1000, 70_000],
      [299_990, 100],
      [300_000, 1],
      [5, 0],
    ] as const) {
      const range = { start, length }
      t.ok((await read('objects/big', { range })).equals(BODY.subarray(start, start + length)), JSON.stringify(range))
    }
    t.equal((await read('objects/empty', { range: { start: 0, length: 10 } })).length, 0)
  })

  t.test('read states the size of the whole object, and when it was written', async t => {
    const reading = await source.read(keyOf('objects/big'), { range: { start: 7, length: 1 } })
    for await (const chunk of reading.chunks) t.strictSame([...chunk], [7])
    t.equal(reading.objectBytes, BODY.length)
    t.ok(Math.abs(Date.now() - reading.lastModified!.getTime()) < 3_600_000)
  })

  t.test('a name is any text', async t => {
    for (const name of ODD_NAMES) t.equal(String(await read(`odd/${name}`)), `<${name}>`)
    const direct = [...new Set(ODD_NAMES.map(name => name.replace(/\/.*/s, '/')))]
    t.strictSame(
      await list('odd/'),
      direct.sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b))),
    )
  })

  t.test('list gives what lies directly below a folder, in byte order, and narrows by prefix', async t => {
    t.strictSame(await list('objects/'), ['big', 'empty'])
    t.strictSame(await list('odd/', 'a'), ['a b', 'a%20b', 'a+b'])
    t.strictSame(await list('odd/', 'none'), [])
    t.strictSame(await list('none/'), [], 'a missing folder lists nothing')
    t.strictSame(await list('odd/x/'), ['y/'])
  })

  t.test('an object that is not there, or a folder, is OBJECT_GONE', async t => {
    t.equal(await codeOf(read('objects/none')), 'OBJECT_GONE')
    t.equal(await codeOf(read('none/none')), 'OBJECT_GONE')
    t.equal(await codeOf(read('odd/x')), 'OBJECT_GONE')
    await write('objects/short-lived', BODY)
    await remove('objects/short-lived')
    t.equal(await codeOf(read('objects/short-lived')), 'OBJECT_GONE')
  })

  t.test('what was interrupted is INTERRUPTED, before and while it is read', async t => {
    t.equal(await codeOf(read('objects/big', { signal: AbortSignal.abort() })), 'INTERRUPTED')
    const [controller, chunks] = [new AbortController(), []] as [AbortController, Uint8Array[]]
    const reading = await source.read(keyOf('objects/big'), { signal: controller.signal })
    const rest = (async () => {
      for await (const chunk of reading.chunks) {
        chunks.push(chunk)
        controller.abort()
      }
    })()
    const code = await codeOf(rest)
    // The rest may have been here already; then it is right.
    t.ok(code === 'INTERRUPTED' || (code === undefined && Buffer.concat(chunks).equals(BODY)), String(code))
    t.ok((await read('objects/big')).equals(BODY), 'and the next read is whole')
  })

  t.test('a reader that stops early leaves the source usable', async t => {
    for (let i = 0; i < 20; i++) {
      const { chunks } = await source.read(keyOf('objects/big'))
      for await (const _ of chunks) break
    }
    t.ok((await read('objects/big')).equals(BODY))
  })
}

/** `undefined`: it did not fail. Throws what is no BobbinError. */
export async function codeOf(promise: Promise<unknown>): Promise<ErrorCode | undefined> {
  try {
    await promise
    return undefined
  } catch (error) {
    if (error instanceof BobbinError) return error.code
    throw error
  }
}
