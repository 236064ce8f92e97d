/** The access log of a mount, over several daemons: every access once, and what is missing is counted. */
import { appendFileSync, existsSync, readdirSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { TopHash } from '../../../../daemon/model/index.js'
import { AccessLog, type AccessLogFacts } from '../../../../daemon/mount/access-log.js'
import { AccessLogRoom } from '../../../../daemon/mount/access-logs.js'
import { wholeAccessLog } from '../../../support/access-log.js'
import { smallDisk } from '../../../support/small-disk.js'

const FACTS = {
  version: 1,
  registry: 'file:///registry',
  package: 'a/b',
  topHash: 'a'.repeat(64) as TopHash,
  mountpoint: '/mnt',
  mountedAt: 1_700_000_000_000,
} as const

/** Opens of these inode numbers; a string is a record of so many that were lost. */
function records(...inos: readonly (number | string)[]): Buffer {
  return Buffer.concat(
    inos.map(ino => {
      const record = Buffer.alloc(24)
      record.writeBigUInt64LE(1n, 0)
      record.writeUInt32LE(typeof ino === 'number' ? ino : 0, 8)
      record.writeUInt32LE(typeof ino === 'number' ? 1 : 0, 12)
      record.writeBigUInt64LE(typeof ino === 'number' ? 10n : BigInt(ino), 16)
      return record
    }),
  )
}

const rooms = new Map<string, AccessLogRoom>()

/** As a daemon does it: all logs of a folder share their room. */
function openLog(folder: string, mount: number, facts: AccessLogFacts = FACTS): AccessLog {
  const room = rooms.get(folder) ?? new AccessLogRoom(folder)
  rooms.set(folder, room)
  return new AccessLog(folder, mount, facts, room)
}

/** As `records` takes them. */
function read(path: string): (number | string)[] {
  return wholeAccessLog(path).records.map(({ kind, ino, bytes }) => (kind === 'lost' ? String(bytes) : ino))
}

t.test('what is sent again, or in part again, is there once', async t => {
  const log = openLog(t.testdir(), 1)
  t.notOk(existsSync(log.path), 'a mount that nobody reads leaves none')
  log.append(0, records(1, 2))
  t.equal(log.count, 2)
  log.append(0, records(1, 2))
  log.append(1, records(2, 3))
  log.append(3, records(4))
  t.strictSame(read(log.path), [1, 2, 3, 4])
  t.strictSame(log.stats(), { records: 4, lost: 0 })
  log.close()
})

t.test('the next daemon goes on where the file ends', async t => {
  const folder = t.testdir()
  const first = openLog(folder, 1)
  first.append(0, records(1, '5', 2))
  t.equal(first.count, 7)
  // Killed while it wrote.
  appendFileSync(first.path, records(3).subarray(0, 10))
  const second = openLog(folder, 1)
  t.equal(second.count, 7)
  t.strictSame(second.stats(), { records: 2, lost: 5 })
  second.append(6, records(2, 3))
  t.strictSame(read(second.path), [1, '5', 2, 3])
  t.match(wholeAccessLog(second.path).facts, FACTS)
  t.notMatch(openLog(folder, 2).path, second.path)
  second.close()

  // Not even its first line was whole.
  writeFileSync(second.path, '{"version":1')
  const third = openLog(folder, 1)
  t.equal(third.count, 0)
  third.append(0, records(7))
  t.strictSame(read(third.path), [7])
  t.equal(readFileSync(third.path, 'latin1').split('\n')[0], JSON.stringify(FACTS))
})

t.test('where numbers are missing, the log says how many', async t => {
  const folder = t.testdir()
  const log = openLog(folder, 1)
  log.append(0, records(1, 2, 3))
  truncateSync(log.path, readFileSync(log.path).length - 2 * 24)
  const next = openLog(folder, 1)
  t.equal(next.count, 1)
  next.append(3, records(4))
  t.strictSame(read(next.path), [1, '2', 4])
  t.equal(next.count, 4)
})

t.test('logs of mounts that last are kept, however many there are', async t => {
  const folder = t.testdir()
  const append = (mount: number, mountedAt: number) => {
    const log = openLog(folder, mount, { ...FACTS, mountedAt })
    log.append(0, records(mount))
    return log
  }
  const ended = append(1, FACTS.mountedAt)
  ended.close()
  const lasting = append(2, FACTS.mountedAt + 1)
  for (let i = 3; i < 105; i++) append(i, FACTS.mountedAt + i).close()
  t.notOk(existsSync(ended.path), 'the oldest of those that have ended goes')
  t.strictSame(read(lasting.path), [2])
  lasting.close()
})

t.test(
  'all logs together have a part of the quota: ended ones go first, then records are counted as lost (S95)',
  async t => {
    const folder = t.testdir()
    const bytesMax = 20_000
    const room = new AccessLogRoom(folder, () => bytesMax)
    const open = (mount: number) => new AccessLog(folder, mount, { ...FACTS, mountedAt: FACTS.mountedAt + mount }, room)
    const many = (count: number) => records(...Array<number>(count).fill(1))
    const ended = open(1)
    ended.append(0, many(400))
    ended.close()
    const lasting = open(2)
    const other = open(3)
    lasting.append(0, many(200))
    other.append(0, many(100))
    t.ok(existsSync(ended.path))
    lasting.append(200, many(300))
    t.notOk(existsSync(ended.path), 'nobody needs it')
    t.equal(lasting.stats().lost, 0)
    for (let i = 0; i < 50; i++) lasting.append(500 + i * 10, many(10))
    t.ok(lasting.stats().lost > 0)
    t.equal(lasting.count, 1000)
    other.append(100, many(10))
    t.equal(other.stats().lost, 10, 'the room is one for all')
    const bytes = readdirSync(join(folder, 'access')).reduce(
      (sum, name) => sum + statSync(join(folder, 'access', name)).size,
      0,
    )
    t.ok(bytes <= bytesMax + 2 * 1000, `${bytes} bytes, with the first line of each`)
    lasting.close()
    other.close()
  },
)

t.test('a full disk loses records, which are counted when there is room again', async t => {
  const disk = smallDisk(t, 1)
  if (disk === undefined) return
  const log = openLog(disk, 1)
  log.append(0, records(1))
  writeFileSync(`${disk}/filler`, Buffer.alloc(2 ** 20 - 8192))
  let sent = 1
  for (; log.stats().lost === 0; sent += 100) log.append(sent, records(...Array<number>(100).fill(2)))
  t.equal(log.count, sent)
  truncateSync(`${disk}/filler`, 0)
  log.append(sent, records(3))
  const found = read(log.path)
  t.equal(found.at(-1), 3)
  t.match(found.at(-2), /^\d+$/)
  t.equal(openLog(disk, 1).count, sent + 1, 'the file tells of each')
  log.close()
})
