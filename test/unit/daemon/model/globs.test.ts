import { spawnSync } from 'node:child_process'
import fc from 'fast-check'
import picomatch from 'picomatch'
import t, { type Test } from 'tap'
import { compilePaths } from '../../../../cli/path-globs.js'
import { parseQuiltignore } from '../../../../daemon/folder/push/quiltignore.js'
import { compileGlobs, GLOB_CHARACTERS_MAX, quoteGlob } from '../../../../daemon/model/globs.js'

const ATTACK_MS = 60_000

/** Runs in a process of its own, since what hangs can be ended from outside only. */
function ends(t: Test, module: string, code: string): string {
  const url = new URL(module, import.meta.url).href
  const script = `const m = await import(${JSON.stringify(url)}); console.log(String(${code}))`
  const child = spawnSync(process.execPath, ['--input-type=module', '-e', script], {
    timeout: ATTACK_MS,
    killSignal: 'SIGKILL',
    encoding: 'utf8',
  })
  t.equal(child.status, 0, `it ended: ${child.stderr}${child.error ?? ''}`)
  return child.stdout.trim()
}

t.test('globs match in time that does not depend on the glob (S80)', async t => {
  const key = "'a'.repeat(120)"
  const globs = [
    "'*a'.repeat(14) + 'b'",
    "'?*'.repeat(500) + 'b'",
    "'**/a*'.repeat(200) + '/**/b'",
    "'{a,aa,a*}'.repeat(300) + 'b'",
    "'+(a|aa)'.repeat(300) + 'b'",
    "'*(*(*(a)))'.repeat(50) + 'b'",
    "'[^b]*'.repeat(500) + 'b'",
  ]
  const each = `[${globs}].map(glob => m.compileGlobs([glob])(${key}))`
  t.equal(ends(t, '../../../../daemon/model/globs.js', each), globs.map(() => 'false').join())
  const many = `m.compileGlobs(Array.from({ length: 200 }, (_, i) => 'a*'.repeat(16) + i + 'b'))('a'.repeat(4000))`
  t.equal(ends(t, '../../../../daemon/model/globs.js', many), 'false', 'many of them, and a long key')
  const ignore = `m.parseQuiltignore(('a*'.repeat(20) + 'b\\n').repeat(100))('/' + 'a'.repeat(1000), false)`
  t.equal(ends(t, '../../../../daemon/folder/push/quiltignore.js', ignore), 'false', '.quiltignore')
})

t.test('globs that are too long, too deep or ranges without an end are refused (S80)', async t => {
  for (const [globs, words] of [
    [['a'.repeat(GLOB_CHARACTERS_MAX + 1)], /at most 65536/],
    [Array(1000).fill('a'.repeat(100)), /at most 65536/],
    [['{1..1000000000}'], /range is of two single characters/],
    [['{a..b..c}'], /range/],
    [[`${'{a,'.repeat(21)}b${'}'.repeat(21)}`], /more than 20/],
    [[`${'(a|'.repeat(5000)}b${')'.repeat(5000)}`], /more than 20/],
    [['a/!(b)'], /"exclude" instead/],
    [['[z-a]'], /ends before it begins/],
    [['[[:nonsense:]]'], /not a glob/],
  ] as [string[], RegExp][])
    t.throws(() => compileGlobs(globs), { code: 'INVALID_ARGUMENT', message: words }, globs[0]!.slice(0, 40))
  t.throws(() => parseQuiltignore('a'.repeat(70_000)), { code: 'INVALID_ARGUMENT', message: /at most 65536/ })
  // Braces are alternatives of one expression, and nothing is written out.
  t.ok(compileGlobs(['{a,b}'.repeat(200)])('ab'.repeat(100)))
})

t.test('globs mean what they mean to picomatch', async t => {
  const cases: [glob: string, matched: string[], others: string[]][] = [
    ['**', ['a', '.a', 'a/.b/c', 'a\nb'], []],
    ['*', ['a', '.a', 'é'], ['a/b']],
    ['a/**', ['a', 'a/b', 'a/b/.c'], ['ab', 'b/a']],
    ['**/a', ['a', 'b/a', 'b/.c/a'], ['ba', 'a/b']],
    ['a/**/b', ['a/b', 'a/x/b', 'a/x/y/b'], ['a/xb', 'ab']],
    ['a/**/**/b/**/**', ['a/b', 'a/x/b/y'], ['a']],
    ['a**/b', ['a/b', 'ax/b'], ['a/x/b']],
    ['a/***/b', ['a/x/b'], ['a/b', 'a/x/y/b']],
    ['**/*.{jpg,png}', ['x.jpg', 'a/b/x.png'], ['x.gif', 'xjpg']],
    ['a?c', ['abc', 'a.c'], ['a/c', 'ac', 'abbc']],
    ['[ab]', ['a', 'b', '[ab]'], ['c', 'ab']],
    ['x[^a-c]', ['xd', 'x-'], ['xa', 'x', 'x/']],
    ['[]a]', [']', 'a'], ['b']],
    ['[[:digit:]a-]', ['1', 'a', '-'], ['b']],
    ['{a,b{c,d},}x', ['ax', 'bcx', 'bdx', 'x'], ['bx']],
    ['{a..c}{1..3}', ['a1', 'c3'], ['d1', 'a4']],
    ['{a}', ['{a}'], ['a']],
    ['{a,b', ['{a,b'], ['a']],
    ['a[b', ['a[b'], ['ab']],
    ['photo (1).jpg', ['photo (1).jpg', 'photo 1.jpg'], ['photo.jpg']],
    ['a@(b|c)', ['ab', 'ac'], ['a', 'abc']],
    ['a?(b)', ['a', 'ab'], ['abb']],
    ['a+(b)', ['ab', 'abb'], ['a']],
    ['a*(b|c)', ['a', 'abcb'], ['ad']],
    ['\\*', ['*'], ['a']],
    ['./a', ['a', './a'], ['b']],
    ['!a', ['b', 'a/b'], ['a']],
    ['!!a', ['a'], ['b']],
    ['a.b+c$', ['a.b+c$'], ['axb+c$', 'a.bbc$']],
  ]
  for (const [glob, matched, others] of cases) {
    const isMatch = compileGlobs([glob])
    for (const key of matched) t.ok(isMatch(key), `${glob} matches ${key}`)
    for (const key of others) t.notOk(isMatch(key), `${glob} does not match ${key}`)
    for (const key of [...matched, ...others].filter(key => !key.includes('\n')))
      t.equal(picomatch([glob], { dot: true })(key), isMatch(key), `picomatch says the same of ${glob} and ${key}`)
  }
  t.ok(compileGlobs(['a?'])('a😀'), 'a character is a code point')
  t.ok(compileGlobs(['b', '!a', 'c'])('x'), 'one of several is enough')

  const atom = fc.constantFrom('a', 'b', '.', '*', '?', '[ab]', '[^a]', '{a,b}', '{a,x*}', '{b?,a}', '{a,{b,ab}}', 'x')
  const component = fc.oneof(
    fc.constant('**'),
    fc.array(atom, { minLength: 1, maxLength: 4 }).map(atoms => atoms.join('')),
  )
  const glob = fc
    .tuple(fc.constantFrom('', '', '', '!'), fc.array(component, { minLength: 1, maxLength: 4 }))
    .map(([sign, components]) => sign + components.join('/'))
    // To picomatch, several "**" in a row mean one thing in front and another one behind.
    .filter(text => !/(^|\/)\.{1,2}(\/|$)/.test(text) && !text.includes('**/**'))
  const name = fc
    .array(fc.constantFrom('a', 'b', '.', 'x'), { minLength: 1, maxLength: 4 })
    .map(chars => chars.join(''))
    .filter(text => text !== '.' && text !== '..')
  const key = fc.array(name, { minLength: 1, maxLength: 4 }).map(names => names.join('/'))
  fc.assert(
    fc.property(fc.array(glob, { minLength: 1, maxLength: 2 }), fc.array(key, { maxLength: 20 }), (globs, keys) => {
      const [ours, theirs] = [compileGlobs(globs), picomatch(globs, { dot: true })]
      for (const key of keys) if (ours(key) !== theirs(key)) throw new Error(`${JSON.stringify(globs)} ${key}`)
    }),
    { numRuns: 1000 },
  )
  fc.assert(
    fc.property(fc.string({ unit: 'binary', minLength: 1 }), key, (text, other) => {
      const isMatch = compileGlobs([quoteGlob(text)])
      return isMatch(text) && isMatch(other) === (other === text)
    }),
  )
})

t.test('every glob takes every key, whatever ends its lines (S142)', async t => {
  const ends = ['\n', '\r', '\r\n', '\u2028', '\u2029', '\u0085', '\v', '\f']
  const keys = ends.flatMap(end => [`a${end}b`, `${end}x`, `x${end}`, end])
  const top = ['**', '*', '**/*', './**', '{**,q}', '+(?)', '!none', '[^/]*']
  const below = ['**', 'd/**', '*/*', '**/*', 'd/?*', 'd']
  // Titles with such characters would be lines of their own.
  const missed = keys.flatMap(key => [
    ...top.filter(glob => !compileGlobs([glob])(key)).map(glob => [glob, encodeURIComponent(key)]),
    ...below
      .filter(glob => !compilePaths([glob], () => false)(`d/${key}`))
      .map(glob => [glob, encodeURIComponent(`d/${key}`)]),
  ])
  t.strictSame(missed, [])
  t.notOk(compileGlobs(['a'])('a\n'), "a line's end is a character")
  t.ok(compileGlobs(['a?b'])('a\nb'))
})
