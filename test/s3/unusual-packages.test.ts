/** The table of unusual metadata and keys that test/unit holds Bobbin to is what quilt3 itself says. */
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import t from 'tap'
import {
  DIFF_TABLE,
  DIRECTORY_META_TABLE,
  directoryRow,
  ENTRY_META_TABLE,
  entryRow,
  LONE_SURROGATES,
  LONE_SURROGATES_TOP_HASH,
  loneSurrogateRows,
  manifestOf,
  PACKAGE_META_TABLE,
} from '../support/package-table.js'
import { part, repository } from '../support/parts.js'

t.setTimeout(120_000)

t.test('quilt3 makes of unusual metadata and keys what the table says (S190, S191, S192)', async t => {
  const task = {
    before: manifestOf(DIFF_TABLE.map(([before], i) => entryRow(`"${i}"`, before))),
    after: manifestOf(DIFF_TABLE.map(([, after], i) => entryRow(`"${i}"`, after))),
    packages: PACKAGE_META_TABLE.map(([member]) => manifestOf([entryRow('"a"', '{}')], member)),
    directories: manifestOf([
      ...DIRECTORY_META_TABLE.map(([meta], i) => directoryRow(`"${i}/"`, meta)),
      ...DIRECTORY_META_TABLE.map((_, i) => entryRow(`"${i}/a"`, '{}')),
    ]),
    entries: manifestOf(ENTRY_META_TABLE.map(([meta], i) => entryRow(`"${i}"`, meta))),
    keys: manifestOf(loneSurrogateRows()),
  }
  const { status, stdout, stderr } = spawnSync(part('quilt3'), [join(repository, 'test/support/judge_packages.py')], {
    input: JSON.stringify(task),
    encoding: 'utf8',
    env: {
      PATH: process.env.PATH,
      HOME: t.testdir(),
      QUILT_DISABLE_USAGE_METRICS: 'true',
      QUILT_MINIMIZE_STDOUT: 'true',
    },
  })
  t.equal(status, 0, stderr)
  const answers = JSON.parse(stdout)
  const differing = DIFF_TABLE.flatMap(([, , differs], i) => (differs ? [String(i)] : []))
  t.strictSame([...answers.modified].sort(), differing.sort())
  t.strictSame(
    answers.packages,
    PACKAGE_META_TABLE.map(([, meta]) => meta),
  )
  t.strictSame(
    answers.directories,
    DIRECTORY_META_TABLE.map(([meta]) => meta),
  )
  t.strictSame(
    answers.written,
    DIRECTORY_META_TABLE.flatMap(([, isWritten], i) => (isWritten ? [`${i}/`] : [])),
  )
  t.strictSame(
    answers.entries,
    ENTRY_META_TABLE.map(([, userMeta]) => userMeta),
  )
  t.strictSame(answers.keys, LONE_SURROGATES)
  t.equal(answers.topHash, LONE_SURROGATES_TOP_HASH)
})
