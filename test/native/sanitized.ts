/**
 * Builds the native tests and bobbin-fuse with sanitizers. Runs the tests on a package that the compiler made here, and
 * real mounts through that bobbin-fuse, which ends at the first thing that a sanitizer finds. Each kind has a test file of its
 * own, because a build takes a minute.
 *
 * What the package holds is told to them by the TypeScript reader, in `nodes.tsv` and `facts.tsv`:
 * texts in hex, positions from 0. So two readers that share no line have to agree.
 */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { PackageIndex } from '../../daemon/index/package-index.js'
import { compileManifest } from '../../daemon/manifest/compile.js'
import type { Registry, TopHash } from '../../daemon/model/index.js'
import { runProgram } from '../support/cli.js'
import { fileRow, manifestText, type Row, topHashOf } from '../support/manifest.js'
import { repository } from '../support/parts.js'

const REGISTRY: Registry = { kind: 's3', bucket: 'bucket' }
/** Nodes, names and keys each fill more than one block of 64 KiB. */
const PLAIN_FILES = 1_500
/** A build takes a minute of processor time; two cores that others use take many. */
const TIMEOUT_MS = 900_000
/** Files whose tests mount, and how long they may take all together. */
const MOUNTS = [
  'fuse/native',
  'fuse/native-cached.deep',
  'native/life.deep',
  'native/bad-input.deep',
  'native/fd-store.deep',
]
const MOUNTS_MS = 1_500_000

function cannotBuild(): string | false {
  const missing = ['cmake', 'g++'].filter(program => spawnSync(program, ['--version']).status !== 0)
  return missing.length > 0 && `${missing.join(' and ')} missing here`
}

const base64 = (bytes: number, fill: number) => Buffer.alloc(bytes, fill).toString('base64')

function rows(): Row[] {
  const rows: Row[] = [
    fileRow('b.bin', { size: 2 ** 53 - 1, hash: { type: 'SHA256', value: 'ab'.repeat(32) } }),
    fileRow('c/nvme', { size: 0, hash: { type: 'CRC64NVME', value: base64(8, 7) } }),
    fileRow(`deep/${'d/'.repeat(200)}end`, { meta: { user_meta: { deep: true } } }),
    fileRow(`long/${'l'.repeat(255)}`),
    fileRow('texts/h\u00e4\u00df\u4e2d', { meta: { user_meta: { text: 'ok' } } }),
    fileRow('texts/ with spaces and \ttab'),
  ]
  for (let i = 0; i < PLAIN_FILES; i++) {
    const hash = { type: 'sha2-256-chunked', value: base64(32, i % 256) }
    rows.push(fileRow(`plain/${i % 7}/${i}.bin`, { size: i, hash, meta: i % 3 === 0 ? { user_meta: { i } } : {} }))
  }
  return rows
}

async function writePackage(folder: string): Promise<void> {
  const header = { version: 'v0', message: 'hi', user_meta: { name: 'native' } }
  const files = rows()
  const topHash = topHashOf(files, header) as TopHash
  const [indexPath, manifestPath] = [join(folder, 'index'), join(folder, 'manifest')]
  writeFileSync(manifestPath, manifestText([{ logical_key: 'c/', meta: { user_meta: { c: 1 } } }, ...files], header))
  await compileManifest({ manifestPath, indexPath, topHash, registry: REGISTRY })
  const index = new PackageIndex(indexPath, manifestPath)
  const hex = (text: string) => Buffer.from(text).toString('hex')
  const physicalKeys = new Map(files.map(row => [row.logical_key, row.physical_keys![0]!]))
  const lines = []
  for (let ino = 1; ino <= index.facts.entries + index.facts.directories; ino++) {
    const node = index.node(ino)
    const fields = [ino - 1, node.ino === 1 ? 0 : node.parent - 1, node.kind, hex(node.name)]
    const meta = hex((ino > 1 && index.metadata(ino)) || '')
    if (node.kind === 'directory') lines.push([...fields, node.childCount, '', '', '', meta])
    else {
      const { hash, key } = index.entry(ino)
      lines.push([...fields, node.size, hash.type, hash.hex.padEnd(64, '0'), hex(physicalKeys.get(key)!), meta])
    }
  }
  writeFileSync(join(folder, 'nodes.tsv'), lines.map(fields => `${fields.join('\t')}\n`).join(''))
  const { entries, bytes, manifestSha256 } = index.facts
  const facts = {
    topHash,
    manifestSha256,
    entries,
    bytes,
    message: JSON.stringify(header.message),
    userMeta: JSON.stringify(header.user_meta),
  }
  const factLines = Object.entries(facts).map(([name, value]) => `${name}\t${hex(String(value))}\n`)
  writeFileSync(join(folder, 'facts.tsv'), factLines.join(''))
  index.close()
}

/** Standard output and error together. */
async function run(program: string, args: readonly string[], env: NodeJS.ProcessEnv = process.env) {
  const { status, stdout, stderr } = await runProgram(program, args, { env, timeoutMs: TIMEOUT_MS })
  return { status, output: stdout + stderr }
}

/** `name`: of the folder below build/. `sanitizers`: as the compiler takes them. */
export function testSanitized(name: string, sanitizers: string): void {
  t.setTimeout(TIMEOUT_MS + MOUNTS_MS)
  const options = { skip: cannotBuild(), timeout: TIMEOUT_MS }
  t.test(`bobbin-native-tests pass with the sanitizers ${sanitizers}`, options, async t => {
    const folder = mkdtempSync(join(tmpdir(), 'bobbin-native-'))
    t.teardown(() => rmSync(folder, { recursive: true }))
    await writePackage(folder)
    const build = join(repository, 'build', name)
    const configured = await run('cmake', [
      ...['-S', join(repository, 'native'), '-B', build, '-DBOBBIN_TESTS=ON', `-DBOBBIN_SANITIZE=${sanitizers}`],
      ...['-DCMAKE_CXX_COMPILER=g++', '-DCMAKE_BUILD_TYPE=None', '-DCMAKE_CXX_FLAGS=-O1 -g1 -D_GLIBCXX_ASSERTIONS'],
    ])
    if (!t.equal(configured.status, 0, 'cmake configures')) return t.comment(configured.output)
    const jobs = String(Math.min(4, availableParallelism()))
    const built = await run('cmake', ['--build', build, '--target', 'bobbin-native-tests', '--parallel', jobs])
    if (!t.equal(built.status, 0, 'they build')) return t.comment(built.output.slice(-4000))
    const program = join(build, 'test', 'bobbin-native-tests')
    const tested = await run(program, [], { ...process.env, BOBBIN_TEST_PACKAGE: folder })
    t.comment(/\d+ tests from .* ran\. \(\d+ ms total\)/.exec(tested.output)?.[0])
    t.notMatch(tested.output, /SKIPPED/, 'none is skipped')
    if (!t.equal(tested.status, 0, 'they pass')) t.comment(tested.output.slice(-4000))
  })

  t.test(`real mounts pass with the sanitizers ${sanitizers}`, { ...options, timeout: MOUNTS_MS }, async t => {
    const build = join(repository, 'build', name)
    const jobs = String(Math.min(4, availableParallelism()))
    const built = await run('cmake', ['--build', build, '--target', 'bobbin-fuse', '--parallel', jobs])
    if (!t.equal(built.status, 0, 'bobbin-fuse builds')) return t.comment(built.output.slice(-4000))
    const halt = { ASAN_OPTIONS: 'halt_on_error=1', TSAN_OPTIONS: 'halt_on_error=1' }
    const env = { ...process.env, ...halt, BOBBIN_FUSE: join(build, 'bobbin-fuse') }
    for (const file of MOUNTS) {
      const path = fileURLToPath(new URL(`../${file}.test.js`, import.meta.url))
      await t.spawn(process.execPath, [path], { env, timeout: MOUNTS_MS }, file)
    }
  })
}
