/** Container engines with data folders of their own, a registry beside them, and images made of busybox. */
import { type ChildProcess, spawn } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import type { Test } from 'tap'
import { runProgram } from './cli.js'
import { until } from './daemon.js'

export interface Engine {
  /** For whatever is to use it. */
  readonly env: Readonly<Record<string, string>>
  /** `localhost:PORT` */
  readonly registry: string
  /** Throws unless it ends with 0. */
  run(...args: string[]): Promise<string>
  /** An image that says what it is, imported under a name. */
  image(name: string, text: string): Promise<void>
  /** The registry has this manifest no more. */
  forget(repository: string, digest: string): Promise<void>
}

export type Docker = Engine

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
  'cp',
  'nc',
]
const START_MS = 60_000
/** Between our choice of a port and its use somebody else may take it. */
const REGISTRY_TRIES_MAX = 5

/** Docker's engine, with features that it has switched off by itself. */
export async function startDocker(t: Test, features: Readonly<Record<string, boolean>> = {}): Promise<Docker> {
  const parts = new Processes(t)
  const { folder } = parts
  const config = join(folder, 'daemon.json')
  writeFileSync(config, JSON.stringify({ features }))
  const host = `unix://${folder}/docker.sock`
  const env = { DOCKER_HOST: host, DOCKER_CONFIG: join(folder, 'config') }
  const places = [
    '--config-file',
    config,
    '--data-root',
    join(folder, 'data'),
    '--exec-root',
    join(folder, 'exec'),
    '--pidfile',
    join(folder, 'pid'),
  ]
  const network = ['--bridge=none', '--iptables=false', '--ip-forward=false', '--ip-masq=false']
  const { said } = parts.start('dockerd', ['--host', host, ...places, ...network])
  const { registry, forget } = await startRegistry(parts)
  const docker = new Client('docker', { ...process.env, ...env })
  await until('the engine answers', async () => (await docker.try('info')).status === 0, START_MS).catch(error => {
    throw new Error(`${error.message}: ${said()}`)
  })
  return {
    env,
    registry,
    forget,
    run: (...args) => docker.run(...args),
    image: async (name, text) => void (await docker.run('import', await busyboxTar(folder, text), name)),
  }
}

/**
 * Podman, which has no engine that runs. Its defaults are not everybody's: crun refuses the hybrid cgroups of some
 * machines, and without CAP_SYS_RESOURCE limits cannot be raised to what it wants.
 */
export async function startPodman(t: Test): Promise<Engine> {
  const parts = new Processes(t)
  const { folder } = parts
  const write = (name: string, text: string) => {
    writeFileSync(join(folder, name), text)
    return join(folder, name)
  }
  const { registry, forget } = await startRegistry(parts)
  const limits = '["nofile=1024:1024", "nproc=1024:1024"]'
  const env = {
    CONTAINERS_STORAGE_CONF: write(
      'storage.conf',
      `[storage]\ndriver = "vfs"\ngraphroot = "${folder}/graph"\nrunroot = "${folder}/run"\n`,
    ),
    CONTAINERS_CONF: write(
      'containers.conf',
      `[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\ntmp_dir = "${folder}/tmp"\n[containers]\nlog_driver = "k8s-file"\ndefault_ulimits = ${limits}\n`,
    ),
    CONTAINERS_REGISTRIES_CONF: write('registries.conf', `[[registry]]\nlocation = "${registry}"\ninsecure = true\n`),
  }
  const podman = new Client('podman', { ...process.env, ...env })
  return {
    env,
    registry,
    forget,
    run: (...args) => podman.run(...args),
    image: async (name, text) => void (await podman.run('import', '--quiet', await busyboxTar(folder, text), name)),
  }
}

async function startRegistry(parts: Processes) {
  for (let tries = 1; ; tries++) {
    const port = await freePort()
    const config = join(parts.folder, 'registry.yml')
    writeFileSync(
      config,
      `version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: ${parts.folder}/registry\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:${port}\n`,
    )
    const { said, hasEnded } = parts.start('docker-registry', ['serve', config])
    // Not by its answers: who has taken the port meanwhile may be another test's registry.
    const isThere = () => said().includes('listening on')
    await until('the registry is there, or has ended', () => isThere() || hasEnded(), START_MS).catch(error => {
      throw new Error(`${error.message}: ${said()}`)
    })
    if (isThere()) return registryAt(port)
    if (tries === REGISTRY_TRIES_MAX) throw new Error(`the registry does not start: ${said()}`)
  }
}

function registryAt(port: number): Pick<Engine, 'registry' | 'forget'> {
  return {
    registry: `localhost:${port}`,
    async forget(repository: string, digest: string) {
      const url = `http://127.0.0.1:${port}/v2/${repository}/manifests/${digest}`
      const { status } = await fetch(url, { method: 'DELETE' })
      if (status !== 202) throw new Error(`DELETE ${url}: ${status}`)
    },
  }
}

/** An image's files, packed: its name. */
async function busyboxTar(folder: string, text: string): Promise<string> {
  const root = mkdtempSync(join(folder, 'root-'))
  mkdirSync(join(root, 'bin'))
  mkdirSync(join(root, 'tmp'))
  cpSync('/bin/busybox', join(root, 'bin/busybox'))
  for (const tool of TOOLS) symlinkSync('busybox', join(root, 'bin', tool))
  writeFileSync(join(root, 'which'), text)
  await runProgram('tar', ['-C', root, '-cf', `${root}.tar`, '.'])
  return `${root}.tar`
}

class Client {
  constructor(
    private readonly program: string,
    private readonly env: NodeJS.ProcessEnv,
  ) {}

  try(...args: string[]) {
    return runProgram(this.program, args, { env: this.env })
  }

  async run(...args: string[]): Promise<string> {
    const { status, stdout, stderr } = await this.try(...args)
    if (status !== 0) throw new Error(`${this.program} ${args.join(' ')}: ${stderr}`)
    return stdout.trim()
  }
}

/** They end with the test, and then their folder goes. */
class Processes {
  /** Short, for sockets. */
  readonly folder = mkdtempSync('/tmp/docker-')
  readonly #children: ChildProcess[] = []

  constructor(t: Test) {
    t.teardown(async () => {
      for (const child of this.#children.reverse()) {
        if (child.exitCode !== null || child.signalCode !== null) continue
        const ended = new Promise(resolve => child.once('exit', resolve))
        child.kill('SIGTERM')
        await ended
      }
      rmSync(this.folder, { recursive: true, force: true })
    })
  }

  /** `said`: on stderr, so far. */
  start(command: string, args: readonly string[]): { said(): string; hasEnded(): boolean } {
    const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'pipe'] })
    let [said, hasEnded] = ['', false]
    child.stderr.setEncoding('utf8').on('data', chunk => {
      said = (said + chunk).slice(-20_000)
    })
    child.once('error', error => {
      said += error.message
    })
    child.once('close', () => {
      hasEnded = true
    })
    this.#children.push(child)
    return { said: () => said, hasEnded: () => hasEnded }
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
