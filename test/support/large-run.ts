/**
 * A run that has read every entry of a large package, made without a mount: its package, its access log and its facts are written
 * here. `node large-run.js STEP FOLDER ROWS` takes one step and says what memory that took; each wants a process of its own.
 *
 *   make     the package in a registry, compiled into the cache, and two runs that have read all of it
 *   finish   the record of the first run, then of the second
 *   verify   that record is checked against the package
 *   merge    both records become one
 */
import { createHash } from 'node:crypto'
import { closeSync, mkdirSync, openSync, renameSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { mergeRecords } from '../../cli/record/merge.js'
import type { RunFacts } from '../../cli/record/run-facts.js'
import { RunFolder } from '../../cli/record/run-folder.js'
import { verifyRecord } from '../../cli/record/verify.js'
import { finishRun } from '../../cli/run/finish.js'
import { parsePackageName, type TopHash } from '../../daemon/model/index.js'
import { AccessLog } from '../../daemon/mount/access-log.js'
import { AccessLogRoom } from '../../daemon/mount/access-logs.js'
import { openPackage } from '../../daemon/package/package-cache.js'
import { parseRegistry } from '../../daemon/registry/reference.js'
import { createSource } from '../../daemon/source/index.js'

const NAME = 'big/package'
const MOUNTED_AT = Date.UTC(2026, 0, 1)
const HEX = 'ab'.repeat(32)
const PER_FOLDER = 10_000
const WRITE_CHARACTERS = 2 ** 20
/** As bobbin-fuse sends them. */
const RECORDS_AT_ONCE = 8192
const RECORD_BYTES = 24

const [step, folder, count] = process.argv.slice(2) as [string, string, string]
const rows = Number(count)
const registry = pathToFileURL(join(folder, 'registry')).href
const cacheDir = join(folder, 'cache')
const state = join(folder, 'state')
const source = createSource({ ioTimeoutMs: 30_000, offline: false })

switch (step) {
  case 'make':
    await make()
    break
  case 'finish':
    for (const run of RunFolder.all(state)) await finishRun(run, run.read(), { cacheDir, source })
    break
  case 'verify': {
    const packages = { cacheDir, source, offline: true, quarantine: true }
    const verdict = await verifyRecord(RunFolder.all(state)[0]!, { publicKey: undefined, packages })
    say({ problems: verdict.problems, remarks: verdict.remarks, reads: verdict.reads })
    break
  }
  case 'merge': {
    const merged = await mergeRecords(RunFolder.all(state).slice(0, 2), state, undefined)
    say({ record: merged.folder.path })
    break
  }
  default:
    throw new Error(`no such step: ${step}`)
}
source.close()
// Kilobytes.
say({ peakMiB: Math.round(process.resourceUsage().maxRSS / 1024), seconds: Math.round(process.uptime()) })

function say(facts: object): void {
  process.stdout.write(`${JSON.stringify(facts)}\n`)
}

async function make(): Promise<void> {
  const topHash = writePackage()
  const reference = { registry: parseRegistry(registry), name: parsePackageName(NAME) }
  const revision = { kind: 'hash', prefix: topHash } as const
  const opened = await openPackage({ ...reference, revision }, { cacheDir, source, offline: false, quarantine: true })
  const { entries, directories, bytes } = opened.index.facts
  if (entries !== rows) throw new Error(`the package has ${entries} entries`)
  for (let i = 0; i < 2; i++) {
    const mountedAt = MOUNTED_AT + i
    const mountpoint = `/mnt/${i}`
    const room = new AccessLogRoom(cacheDir)
    const log = new AccessLog(
      cacheDir,
      i,
      { version: 1, registry, package: NAME, topHash, mountpoint, mountedAt },
      room,
    )
    // Each file is opened, and read for the first time; directories have the numbers below theirs.
    const inos = fileNumbers(directories)
    for (let sent = 0; sent < 2 * rows; ) sent += appendTo(log, sent, Math.min(RECORDS_AT_ONCE, 2 * rows - sent), inos)
    if (log.stats().lost > 0) throw new Error(`${log.stats().lost} accesses were lost`)
    log.close()
    const run = RunFolder.create(state)
    const mount = { asked: NAME, registry, package: NAME, topHash, manifestSha256: opened.index.facts.manifestSha256 }
    const facts: RunFacts = {
      version: 1,
      runId: run.runId,
      bobbin: '0',
      pid: process.pid,
      host: `node-${i}`,
      engine: { name: 'host', version: '0' },
      command: ['train'],
      env: {},
      options: [],
      mounts: [
        {
          ...mount,
          entries,
          bytes,
          mountpoint,
          target: '/data',
          mountedAt: new Date(mountedAt).toISOString(),
          cacheDir,
        },
      ],
      loaderSocket: null,
      startedOn: new Date(MOUNTED_AT).toISOString(),
      finishedOn: new Date(MOUNTED_AT + 1).toISOString(),
      exitCode: 0,
      areLogsWhole: true,
    }
    run.write(facts)
  }
  opened.close()
}

/** Inode numbers go breadth-first: the root, its folders, then all files. */
function fileNumbers(directories: number): (access: number) => number {
  return access => directories + 1 + Math.floor(access / 2)
}

function appendTo(log: AccessLog, sent: number, length: number, inoOf: (access: number) => number): number {
  const records = Buffer.alloc(length * RECORD_BYTES)
  for (let i = 0; i < length; i++) {
    const access = sent + i
    records.writeBigUInt64LE(BigInt(MOUNTED_AT + (access % 100_000)) * 1_000_000n, i * RECORD_BYTES)
    records.writeUInt32LE(inoOf(access), i * RECORD_BYTES + 8)
    records.writeUInt32LE(access % 2 === 0 ? 1 : 2, i * RECORD_BYTES + 12)
    records.writeBigUInt64LE(1n, i * RECORD_BYTES + 16)
  }
  log.append(sent, records)
  return length
}

/** Rows in tree order, all ASCII: the canonical form of each is written down as it is. */
function writePackage(): TopHash {
  const packages = join(folder, 'registry', '.quilt', 'packages')
  mkdirSync(packages, { recursive: true })
  const header = '{"message": null, "version": "v0"}'
  const hash = createHash('sha256').update(header.replaceAll(/([:,]) /g, '$1'))
  const path = join(packages, 'new')
  const fd = openSync(path, 'w')
  let text = `${header}\n`
  for (let i = 0; i < rows; i++) {
    const key = `train/n${String(Math.floor(i / PER_FOLDER)).padStart(6, '0')}/${String(i).padStart(9, '0')}.jpg`
    const value = `{"type":"SHA256","value":"${HEX}"}`
    hash.update(`{"hash":${value},"logical_key":"${key}","meta":{},"size":1}`)
    text += `{"logical_key":"${key}","physical_keys":["s3://bucket/${key}"],"size":1,"hash":${value},"meta":{}}\n`
    if (text.length < WRITE_CHARACTERS && i < rows - 1) continue
    writeSync(fd, text)
    text = ''
  }
  closeSync(fd)
  const topHash = hash.digest('hex') as TopHash
  renameSync(path, join(packages, topHash))
  const names = join(folder, 'registry', '.quilt', 'named_packages', NAME)
  mkdirSync(names, { recursive: true })
  writeFileSync(join(names, 'latest'), topHash)
  return topHash
}
