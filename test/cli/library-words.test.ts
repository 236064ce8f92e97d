/** What libraries and Node.js say by themselves, beside what a command says. */
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import t from 'tap'
import { runProgram } from '../support/cli.js'
import { bobbinPath } from '../support/parts.js'

/** A library that speaks when something is connected, so long after the command has begun. */
const SAY = `
  import { Socket } from 'node:net'
  const { connect } = Socket.prototype
  Socket.prototype.connect = function (...to) {
    process.emitWarning('of Node.js', 'DeprecationWarning', 'DEP9999')
    for (const level of ['debug', 'error', 'info', 'log', 'trace', 'warn']) console[level]('of a library')
    return connect.apply(this, to)
  }`
const PRELOAD = ['--import', `data:text/javascript,${encodeURIComponent(SAY)}`]

t.test('(S187) a terminal gets no word of a library', async t => {
  // The SDK warns of a service that is slow.
  const silent = createServer(() => {})
  silent.listen(0, '127.0.0.1')
  await once(silent, 'listening')
  t.teardown(() => {
    silent.closeAllConnections()
    silent.close()
  })
  const address = `http://127.0.0.1:${(silent.address() as AddressInfo).port}`
  const home = t.testdir({})
  const env = {
    PATH: process.env.PATH,
    HOME: home,
    XDG_DATA_HOME: home,
    BOBBIN_CACHE: join(home, 'cache'),
    AWS_CONTAINER_CREDENTIALS_FULL_URI: `${address}/credentials`,
    AWS_ENDPOINT_URL: address,
    AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED: 'false',
    DEBUG: '*',
    HTTPS_PROXY: 'http://somebody:secret@127.0.0.1:1',
  }
  const ask = [bobbinPath, 'ls', 's3://data/ns/pkg', '--io-timeout', '3s']
  const quiet = await runProgram(process.execPath, [...PRELOAD, ...ask], { env })
  t.match(quiet.stderr, /^bobbin: [^\n]*no progress on s3:\/\/data[^\n]*\n$/, 'our own word alone')
  t.equal(quiet.stdout, '')
  const asked = await runProgram(process.execPath, [...PRELOAD, ...ask], {
    env: { ...env, NODE_OPTIONS: '--trace-deprecation' },
  })
  t.match(asked.stderr, /DeprecationWarning: of Node\.js/, 'whoever asks Node.js for warnings gets them')
})

t.test('(S187) a log gets them', async t => {
  const log = JSON.stringify(new URL('../../daemon/control/log.js', import.meta.url).href)
  const speak = `
    const { createLog } = await import(${log})
    createLog()
    console.warn('of a library')
    process.emitWarning('of Node.js')`
  const { stderr } = await runProgram(process.execPath, ['--input-type=module', '--eval', speak], {
    env: { PATH: process.env.PATH },
  })
  const lines = stderr.trim().split('\n')
  t.same(
    lines.map(line => JSON.parse(line).words),
    ['of a library', 'Warning: of Node.js'],
  )
})
