/** Docker's engine with a data folder and a socket of its own, a registry beside it, and images made of busybox. */
import { type ChildProcess, spawn } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import type { Test } from 'tap'
import { runProgram } from './cli.js'
import { until } from './daemon.js'

export interface Docker {
  /** For whatever is to use it. */
  readonly env: Readonly<Record<string, string>>
  /** `localhost:PORT` */
  readonly registry: string
  /** Its client; throws unless it ends with 0. */
  run(...args: string[]): Promise<string>
  /** An image that says what it is, imported under a name. */
  image(name: string, text: string): Promise<void>
}

const TOOLS = [
  'sh',
  'cat',
  'ls',
  'sha256sum',
  'sleep',
  'touch',
  'id',
  'env',
  'wget',
  'grep',
  'echo',
  'head',
  'find',
  'nc',
]
const START_MS = 60_000

export async function startDocker(t: Test): Promise<Docker> {
  // Short, for its sockets.
  const folder = mkdtempSync('/tmp/docker-')
  const host = `unix://${folder}/docker.sock`
  const env = { DOCKER_HOST: host, DOCKER_CONFIG: join(folder, 'config') }
  const port = await freePort()
  const children: ChildProcess[] = []
  const start = (command: string, args: readonly string[], more: NodeJS.ProcessEnv = {}) => {
    const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, ...more } })
    let said = ''
    child.stderr.setEncoding('utf8').on('data', chunk => {
      said = (said + chunk).slice(-20_000)
    })
    child.once('error', error => {
      said += error.message
    })
    children.push(child)
    return () => said
  }
  const places = [
    '--data-root',
    join(folder, 'data'),
    '--exec-root',
    join(folder, 'exec'),
    '--pidfile',
    join(folder, 'pid'),
  ]
  const network = ['--bridge=none', '--iptables=false', '--ip-forward=false', '--ip-masq=false']
  const log = start('dockerd', ['--host', host, ...places, ...network])
  const config = join(folder, 'registry.yml')
  writeFileSync(
    config,
    `version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: ${folder}/registry\nhttp:\n  addr: 127.0.0.1:${port}\n`,
  )
  start('docker-registry', ['serve', config])
  t.teardown(async () => {
    for (const child of children.reverse()) {
      if (child.exitCode !== null || child.signalCode !== null) continue
      const ended = new Promise(resolve => child.once('exit', resolve))
      child.kill('SIGTERM')
      await ended
    }
    rmSync(folder, { recursive: true, force: true })
  })
  const docker = (...args: string[]) => runProgram('docker', args, { env: { ...process.env, ...env } })
  await until('the engine answers', async () => (await docker('info')).status === 0, START_MS).catch(error => {
    throw new Error(`${error.message}: ${log()}`)
  })
  const run = async (...args: string[]) => {
    const { status, stdout, stderr } = await docker(...args)
    if (status !== 0) throw new Error(`docker ${args.join(' ')}: ${stderr}`)
    return stdout.trim()
  }
  return {
    env,
    registry: `localhost:${port}`,
    run,
    async image(name, text) {
      const root = mkdtempSync(join(folder, 'root-'))
      mkdirSync(join(root, 'bin'))
      mkdirSync(join(root, 'tmp'))
      cpSync('/bin/busybox', join(root, 'bin/busybox'))
      for (const tool of TOOLS) symlinkSync('busybox', join(root, 'bin', tool))
      writeFileSync(join(root, 'which'), text)
      await runProgram('tar', ['-C', root, '-cf', `${root}.tar`, '.'])
      await run('import', `${root}.tar`, name)
    },
  }
}

function freePort(): Promise<number> {
  return new Promise(resolve => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const address = server.address()
      server.close(() => resolve(typeof address === 'object' ? address!.port : 0))
    })
  })
}
