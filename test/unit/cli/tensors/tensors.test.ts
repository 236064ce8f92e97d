/** Files of tensors from a stranger: nothing of them is executed, and what they say of themselves costs nothing. */
import { execFileSync } from 'node:child_process'
import { existsSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { deflateRawSync } from 'node:zlib'
import t, { type Test } from 'tap'
import { compareTensorFiles } from '../../../../cli/tensors/compare.js'
import { compareTensors } from '../../../../cli/tensors/index.js'

const folder = t.testdir({})
const of = (path: string) => ({ path, outputDir: '/no/such/folder' })
const compareFiles = (was: string, is: string) => compareTensorFiles(of(was), of(is))
const compareConfined = (was: string, is: string, signal?: AbortSignal) => compareTensors(of(was), of(is), signal)
let count = 0

function fileOf(name: string, bytes: Buffer): string {
  const path = join(folder, `${count++}-${name}`)
  writeFileSync(path, bytes)
  return path
}

async function refuses(t: Test, name: string, bytes: Buffer, why: RegExp): Promise<void> {
  const path = fileOf(name, bytes)
  await t.rejects(compareFiles(path, path), { code: 'INVALID_ARGUMENT', message: why }, `${name}: ${why}`)
}

function safetensors(header: unknown, data: Buffer, headerBytes?: number): Buffer {
  const text = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(headerBytes ?? text.length))
  return Buffer.concat([length, text, data])
}

interface Member {
  readonly name: string
  readonly data: Buffer
  readonly method?: number
  /** What it says of itself. */
  readonly bytes?: number
  readonly flags?: number
  /** Where its row of the directory says that it is. */
  readonly at?: number
}

function zip(members: readonly Member[], { count }: { readonly count?: number } = {}): Buffer {
  const [pieces, rows]: [Buffer[], Buffer[]] = [[], []]
  let at = 0
  for (const { name, data, method = 0, bytes = data.length, flags = 0, at: said = at } of members) {
    const header = Buffer.alloc(30)
    header.writeUInt32LE(0x04034b50)
    header.writeUInt16LE(name.length, 26)
    const row = Buffer.alloc(46)
    row.writeUInt32LE(0x02014b50)
    row.writeUInt16LE(flags, 8)
    row.writeUInt16LE(method, 10)
    row.writeUInt32LE(data.length, 20)
    row.writeUInt32LE(bytes, 24)
    row.writeUInt16LE(name.length, 28)
    row.writeUInt32LE(said, 42)
    pieces.push(header, Buffer.from(name), data)
    rows.push(row, Buffer.from(name))
    at += 30 + name.length + data.length
  }
  const directory = Buffer.concat(rows)
  const end = Buffer.alloc(22)
  end.writeUInt32LE(0x06054b50)
  end.writeUInt16LE(count ?? members.length, 10)
  end.writeUInt32LE(directory.length, 12)
  end.writeUInt32LE(at, 16)
  return Buffer.concat([...pieces, directory, end])
}

function npy(header: string, data: Buffer): Buffer {
  const length = Buffer.alloc(2)
  length.writeUInt16LE(header.length)
  return Buffer.concat([Buffer.from('\x93NUMPY\x01\x00', 'latin1'), length, Buffer.from(header), data])
}

const floats = (...values: number[]) => Buffer.from(new Float32Array(values).buffer)
const headerOf = (shape: string, descr = '<f4') =>
  `{'descr': '${descr}', 'fortran_order': False, 'shape': (${shape}), }\n`
const array = npy(headerOf('2,'), floats(1, 2))

/** A pickle that Python makes of an expression, where `os`, `torch` and `collections` are what they are here. */
function pickled(expression: string): Buffer {
  const script = `import pickle, sys, collections, os
class Call:
    def __init__(self, f, *args): self.call = (f, args)
    def __reduce__(self): return self.call
a = []
a.append(a)
laughs = ['ha']
for _ in range(60): laughs = [laughs, laughs]
deep = []
for _ in range(300): deep = [deep]
sys.stdout.buffer.write(pickle.dumps(${expression}, protocol=2))`
  return execFileSync('python3', ['-c', script], { env: { PATH: process.env.PATH } })
}

const torch = (pickle: Buffer, ...more: Member[]) => zip([{ name: 'archive/data.pkl', data: pickle }, ...more])

/** `torch._utils._rebuild_tensor_v2(('storage', torch.FloatStorage, '0', 'cpu', numel), offset, size, stride, False, OrderedDict())`. */
function tensorPickle({ offset = 0, size = [2], stride = [1], numel = 2 }): Buffer {
  const int = (value: number) => {
    const bytes = Buffer.alloc(10)
    bytes[0] = 0x8a
    bytes[1] = 8
    bytes.writeBigInt64LE(BigInt(value), 2)
    return bytes
  }
  const text = (value: string) => Buffer.concat([Buffer.from([0x8c, value.length]), Buffer.from(value)])
  const tuple = (...items: Buffer[]) => Buffer.concat([Buffer.from('('), ...items, Buffer.from('t')])
  const global = (name: string) => Buffer.from(`c${name}\n`)
  const storage = tuple(text('storage'), global('torch\nFloatStorage'), text('0'), text('cpu'), int(numel))
  const none = Buffer.concat([global('collections\nOrderedDict'), Buffer.from(')R')])
  const args = tuple(
    ...[Buffer.concat([storage, Buffer.from('Q')]), int(offset), tuple(...size.map(int)), tuple(...stride.map(int))],
    ...[Buffer.from([0x89]), none],
  )
  return Buffer.concat([Buffer.from([0x80, 2]), global('torch._utils\n_rebuild_tensor_v2'), args, Buffer.from('R.')])
}

const storage = { name: 'archive/data/0', data: floats(1, 2) }

t.test('headers of safetensors that lie are refused (S122)', async t => {
  const row = (begin: number, end: number, shape: unknown = [2], dtype = 'F32') => ({
    dtype,
    shape,
    data_offsets: [begin, end],
  })
  const name = 'x.safetensors'
  await refuses(t, name, safetensors('{}', Buffer.alloc(0), 2 ** 52), /header has \d+ bytes, at most/)
  await refuses(t, name, safetensors('{}', Buffer.alloc(0), 3), /cut short, or says that it is longer/)
  await refuses(t, name, safetensors('[1]', Buffer.alloc(0)), /not JSON/)
  await refuses(t, name, safetensors('['.repeat(1_000_000), Buffer.alloc(0)), /not JSON/)
  await refuses(t, name, safetensors({ a: row(0, 8), b: row(0, 8) }, floats(1, 2)), /overlap/)
  await refuses(t, name, safetensors({ a: row(0, 8), b: row(4, 12) }, floats(1, 2, 3)), /overlap/)
  await refuses(t, name, safetensors({ a: row(0, 8), b: row(12, 20) }, floats(1, 2, 3, 4, 5)), /leave a hole/)
  await refuses(t, name, safetensors({ a: row(0, 8) }, floats(1, 2, 3)), /more or fewer bytes than its tensors/)
  await refuses(t, name, safetensors({ a: row(0, 800) }, floats(1, 2)), /more or fewer bytes than its shape/)
  await refuses(t, name, safetensors({ a: row(0, 8, [2 ** 40, 2 ** 40]) }, floats(1, 2)), /more elements than any file/)
  await refuses(t, name, safetensors({ a: row(0, 8, [-2, -1]) }, floats(1, 2)), /not a whole number/)
  await refuses(t, name, safetensors({ a: row(0, 8, Array(65).fill(1)) }, floats(1, 2)), /65 dimensions/)
  await refuses(t, name, safetensors({ a: row(0, 8, [2], '__proto__') }, floats(1, 2)), /not known/)
  await refuses(t, name, safetensors({ a: null }, floats(1, 2)), /not known/)
  const sound = fileOf(
    name,
    safetensors('{"__proto__":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', floats(1, 2)),
  )
  t.match(await compareFiles(sound, sound), { names: 1, equal: 1 })
})

t.test('arrays that lie, or that only Python could make, are refused (S122)', async t => {
  await refuses(t, 'x.npy', npy(headerOf('2,', '|O8'), Buffer.alloc(16)), /Python objects/)
  await refuses(t, 'x.npy', npy(`__import__('os').system('true')\n`, Buffer.alloc(8)), /not one of NumPy/)
  await refuses(t, 'x.npy', npy(headerOf('99999999,'), floats(1, 2)), /more or fewer bytes than its shape/)
  await refuses(t, 'x.npy', npy(headerOf('4294967296, 4294967296'), floats(1, 2)), /more elements than any file/)
  await refuses(t, 'x.npy', npy(headerOf('2,', '<f16'), Buffer.alloc(32)), /not known/)
  await refuses(t, 'x.npy', array.subarray(0, 40), /cut short/)
})

t.test('zips that would become large, or whose members overlap, are refused (S122)', async t => {
  const bomb = deflateRawSync(Buffer.alloc(50 * 2 ** 20))
  const large = npy(headerOf('2,'), floats(1, 2))
  await refuses(
    t,
    'x.npz',
    zip([{ name: 'a.npy', data: bomb, method: 8, bytes: large.length }]),
    /unpacks to more|not an array/,
  )
  const packed = deflateRawSync(large)
  await refuses(
    t,
    'x.npz',
    zip([{ name: 'a.npy', data: packed, method: 8, bytes: 2 ** 31 }]),
    /unpacks to less|more or fewer/,
  )
  await refuses(
    t,
    'x.npz',
    zip([{ name: 'a.npy', data: Buffer.from('no deflate'), method: 8, bytes: 10 }]),
    /cannot be unpacked/,
  )
  await refuses(t, 'x.npz', zip([{ name: 'a.npy', data: array, bytes: 2 ** 31 }]), /two lengths/)
  const twice = [
    { name: 'a.npy', data: array },
    { name: 'b.npy', data: array, at: 0 },
  ]
  await refuses(t, 'x.npz', zip(twice), /overlap/)
  await refuses(
    t,
    'x.npz',
    zip([
      { name: 'a.npy', data: array },
      { name: 'a.npy', data: array },
    ]),
    /one name/,
  )
  await refuses(t, 'x.npz', zip([{ name: 'a.npy', data: array, flags: 1 }]), /encrypted/)
  await refuses(t, 'x.npz', zip([{ name: 'a.npy', data: array, method: 99 }]), /method 99/)
  await refuses(t, 'x.npz', zip([{ name: 'a.npy', data: array, at: 7 }]), /not where it should be/)
  await refuses(t, 'x.npz', zip([{ name: 'a.npy', data: array, at: 4_000_000_000 }]), /cut short/)
  await refuses(t, 'x.npz', zip([{ name: 'a.npy', data: array }], { count: 60_000 }), /cut short/)
  await refuses(t, 'x.npz', zip([{ name: 'a.txt', data: array }]), /not one of NumPy or torch/)
  await refuses(t, 'x.npz', zip([{ name: 'a.npy', data: array }]).subarray(0, -5), /not a whole zip/)
})

t.test('a pickle that would do anything but rebuild tensors is refused with what it names (S122)', async t => {
  const marker = join(folder, 'marker')
  await refuses(
    t,
    'x.pt',
    torch(pickled(`Call(os.system, 'touch ${marker}')`)),
    /names "(?:posix|nt)\.system".*nothing was executed/,
  )
  await refuses(t, 'x.pt', torch(pickled(`Call(eval, '1')`)), /names "(?:__builtin__|builtins)\.eval"/)
  await refuses(t, 'x.pt', torch(pickled('Call(collections.Counter)')), /names "collections\.Counter"/)
  await refuses(t, 'x.pt', torch(Buffer.from('ctorch\nfloat32\n)R.')), /which is a type/)
  await refuses(t, 'x.pt', torch(Buffer.from('(ios\nsystem\n.')), /opcode 0x69/)
  await refuses(t, 'x.pt', torch(pickled('{(1, 2): 3}')), /neither text nor a number/)
  await refuses(t, 'x.pt', torch(pickled('laughs')), /too many values/)
  await refuses(t, 'x.pt', torch(pickled('a')), /too many values, or too many in each other/)
  await refuses(t, 'x.pt', torch(pickled('deep')), /too many in each other/)
  await refuses(t, 'x.pt', torch(Buffer.from('X\xff\xff\xff\x7f', 'latin1')), /cut short/)
  for (const damaged of ['a.', '0.', 't.', 'h\x01.', 'R.', 's.', 'q\x01.', 'cno line'])
    await refuses(t, 'x.pt', torch(Buffer.from(damaged)), /damaged|cut short|opcode/)
  t.notOk(existsSync(marker))
})

t.test('a tensor outside of its storage is refused, and one inside is read (S122)', async t => {
  const tensor = (facts: Parameters<typeof tensorPickle>[0], ...more: Member[]) => torch(tensorPickle(facts), ...more)
  const sound = fileOf('x.pt', tensor({}, storage))
  const other = fileOf('x.pt', tensor({}, { ...storage, data: floats(1, 2.5) }))
  t.match(await compareFiles(sound, other), { format: 'torch', names: 1, equal: 0, largest: 0.5 })
  await refuses(t, 'x.pt', tensor({}), /missing/)
  await refuses(t, 'x.pt', tensor({ numel: 3 }, storage), /another length/)
  await refuses(t, 'x.pt', tensor({ offset: 1 }, storage), /outside of its storage/)
  await refuses(t, 'x.pt', tensor({ offset: -1 }, storage), /not one of torch/)
  await refuses(t, 'x.pt', tensor({ stride: [2 ** 52] }, storage), /outside of its storage/)
  await refuses(t, 'x.pt', tensor({ size: [2 ** 40], stride: [0] }, storage), /outside|large storage|another order/)
  await refuses(t, 'x.pt', tensor({ size: [2, 1], stride: [1] }, storage), /not one of torch/)
})

t.test('compareTensors gives a reason where there is no comparison, whatever the file is (S122)', async t => {
  const dir = t.testdir({ folder: {}, 'log.pt': 'text', 'cut.safetensors': 'x' })
  const path = (name: string) => join(dir, name)
  symlinkSync(path('log.pt'), path('link.pt'))
  execFileSync('mkfifo', [path('fifo.pt')])
  for (const name of ['folder', 'log.pt', 'cut.safetensors', 'link.pt', 'fifo.pt', 'nothing.pt'])
    t.type(await compareConfined(path(name), path(name)), 'string', name)
  const laughs = fileOf('x.pt', torch(pickled('laughs')))
  t.match(await compareConfined(laughs, laughs), /^it names|^its pickle has too many values/)
  const npz = fileOf('x.npz', zip([{ name: 'a.npy', data: array }]))
  t.match(await compareConfined(npz, laughs), /too many values/)
  const tensor = fileOf('x.pt', torch(tensorPickle({}), storage))
  t.match(await compareConfined(npz, tensor), /one is npz, the other torch/)
  t.match(await compareConfined(npz, npz), { format: 'npz', names: 1, equal: 1, largest: 0, differences: [] })
  const aborted = AbortSignal.abort()
  await t.rejects(compareConfined(npz, npz, aborted), { code: 'INTERRUPTED' })
})
