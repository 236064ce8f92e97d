/** `.quiltignore` against what quilt3 8.0.0 (`quiltignore_filter`, Python 3.11) left out of the same folder, called `data`. */
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t from 'tap'
import { walkFolder } from '../../../../daemon/folder/push/walk-folder.js'
import { testFolder } from '../../../support/daemon.js'

const PATHS = [
  '.DS_Store',
  'a/.DS_Store',
  '__pycache__/x.pyc',
  'a/__pycache__/y.pyc',
  'x.pyc',
  'logs/l',
  'a/logs/l',
  'tmp/t',
  'a/tmp/t',
  'catalogs/l',
  'a/b/c',
  '[x',
  '^y',
  '~z',
  'a&b',
  '-m',
  'b-',
  'z',
  'x\\y',
  '\u00e9',
  '\ud83d\ude00',
  '.hidden',
  'line\nfeed',
  'A',
]
/** Rules, and the paths that they leave out; "all" are all. */
const TABLE: readonly (readonly [rules: string, leftOut: readonly string[] | 'all'])[] = [
  ['**/.DS_Store', ['.DS_Store', 'a/.DS_Store']],
  ['**/__pycache__', ['__pycache__/x.pyc', 'a/__pycache__/y.pyc']],
  ['**/*.pyc', ['__pycache__/x.pyc', 'a/__pycache__/y.pyc', 'x.pyc']],
  ['**/logs', ['a/logs/l', 'logs/l']],
  ['*/tmp', ['a/tmp/t', 'tmp/t']],
  ['tmp', ['a/tmp/t', 'tmp/t']],
  ['logs/', ['a/logs/l', 'logs/l']],
  ['*.pyc\r\n*.none', ['__pycache__/x.pyc', 'a/__pycache__/y.pyc', 'x.pyc']],
  ['z\rA', ['A', 'z']],
  ['a/*', ['a/.DS_Store', 'a/__pycache__/y.pyc', 'a/b/c', 'a/logs/l', 'a/tmp/t']],
  ['*data/*', 'all'],
  ['data/logs', ['logs/l']],
  ['/logs', []],
  ['./logs', []],
  ['logs/*', ['a/logs/l', 'logs/l']],
  ['[[]x', ['[x']],
  ['[^]y', ['^y']],
  ['[^y]y', ['^y']],
  ['[~]z', ['~z']],
  ['a[&]b', ['a&b']],
  ['a[&&]b', ['a&b']],
  ['[a-c-m]', ['a/.DS_Store', 'a/__pycache__/y.pyc', 'a/b/c', 'a/logs/l', 'a/tmp/t']],
  [
    '[!-]',
    [
      'A',
      'a/.DS_Store',
      'a/__pycache__/y.pyc',
      'a/b/c',
      'a/logs/l',
      'a/tmp/t',
      'catalogs/l',
      'logs/l',
      'tmp/t',
      'z',
      '\u00e9',
      '\ud83d\ude00',
    ],
  ],
  ['[!a-z]', ['A', '\u00e9', '\ud83d\ude00']],
  ['[-m]m', ['-m']],
  ['[a-]m', ['-m']],
  ['b[!a-]', ['a/b/c']],
  ['[z-a]', []],
  [
    '[!z-a]',
    [
      'A',
      'a/.DS_Store',
      'a/__pycache__/y.pyc',
      'a/b/c',
      'a/logs/l',
      'a/tmp/t',
      'catalogs/l',
      'logs/l',
      'tmp/t',
      'z',
      '\u00e9',
      '\ud83d\ude00',
    ],
  ],
  ['[z-a-z]', ['z']],
  ['x[\\]y', ['x\\y']],
  ['x\\\\y', []],
  ['[\u00e9]', ['\u00e9']],
  [
    '?',
    [
      'A',
      'a/.DS_Store',
      'a/__pycache__/y.pyc',
      'a/b/c',
      'a/logs/l',
      'a/tmp/t',
      'catalogs/l',
      'logs/l',
      'tmp/t',
      'z',
      '\u00e9',
      '\ud83d\ude00',
    ],
  ],
  ['[\ud83d\ude00]', ['\ud83d\ude00']],
  ['[\ud83d\uddff-\ud83d\ude01]', ['\ud83d\ude00']],
  ['.*', ['.DS_Store', '.hidden', 'a/.DS_Store']],
  ['**', 'all'],
  ['line*', ['line\nfeed']],
  ['line?feed', ['line\nfeed']],
  ['a/**/c', ['a/b/c']],
  ['a**c', ['a/__pycache__/y.pyc', 'a/b/c']],
  ['[]]', []],
  [
    '[!]]',
    [
      'A',
      'a/.DS_Store',
      'a/__pycache__/y.pyc',
      'a/b/c',
      'a/logs/l',
      'a/tmp/t',
      'catalogs/l',
      'logs/l',
      'tmp/t',
      'z',
      '\u00e9',
      '\ud83d\ude00',
    ],
  ],
  ['[', []],
  ['!z', []],
  [' z', []],
  ['#z', []],
  ['z ', []],
  ['[a-c-e-m]', ['a/.DS_Store', 'a/__pycache__/y.pyc', 'a/b/c', 'a/logs/l', 'a/tmp/t', 'catalogs/l', 'logs/l']],
  ['[--/]m', ['-m']],
  ['[+--]m', ['-m']],
  ['[a-c--m]m', ['-m']],
  ['\ufeffz', []],
  ['Z', []],
  ['', []],
]

t.test('.quiltignore leaves out what it leaves out for quilt3 (S144)', async t => {
  const folder = join(testFolder(t), 'data')
  for (const path of PATHS) {
    mkdirSync(dirname(join(folder, path)), { recursive: true })
    writeFileSync(join(folder, path), '')
  }
  const link = join(dirname(folder), 'link')
  symlinkSync('data', link)
  const left = async (dir: string, rules: string | Uint8Array) => {
    writeFileSync(join(folder, '.quiltignore'), rules)
    const keys = new Set<string>()
    for await (const { key } of walkFolder(dir)) keys.add(key)
    return PATHS.filter(path => !keys.has(path)).sort()
  }
  for (const [rules, paths] of TABLE) {
    const expected = paths === 'all' ? [...PATHS] : [...paths]
    t.strictSame(await left(folder, rules), expected.sort(), JSON.stringify(rules))
  }
  t.equal(
    (await left(link, 'data/*')).length,
    PATHS.length,
    'the folder is matched by its own name, not by that of a link',
  )
  t.strictSame(await left(link, 'link/*'), [])
  await t.rejects(left(folder, Uint8Array.of(0x7a, 0xff)), { code: 'INVALID_ARGUMENT', message: /not UTF-8/ })
})
