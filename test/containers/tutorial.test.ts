/** The tutorial, as its page has it: data in a real S3 server, training in a container, and the same model elsewhere. */
import { existsSync, readFileSync } from 'node:fs'
import { delimiter, dirname, join } from 'node:path'
import t from 'tap'
import { AS_USERS_DO, Bobbin, runProgram } from '../support/cli.js'
import { mountsBelow, testFolder } from '../support/daemon.js'
import { startDocker } from '../support/docker.js'
import { part, repository } from '../support/parts.js'
import { type Dump, Quilt3 } from '../support/quilt3.js'
import { startS3 } from '../support/s3-server.js'

t.setTimeout(600_000)

interface Row {
  readonly key: string
  readonly type: string
  readonly physicalKey: string
  readonly meta: { readonly annotations: readonly { readonly supercategory: string }[] }
}

const TUTORIAL_MS = 400_000
const bucket = 's3://tutorial'

const docker = await startDocker(t)
const server = await startS3('versitygw')
t.teardown(() => server.stop())
const folder = testFolder(t)
const quilt3 = new Quilt3(server, folder)
await quilt3.call('make_bucket', { name: 'tutorial', versioned: true })
const image = `${docker.registry}/team/trainer:v1`
await docker.run('import', part('trainer'), image)
await docker.run('push', '--quiet', image)

const path = [dirname(part('quilt3')), join(repository, 'node_modules/.bin'), process.env.PATH].join(delimiter)
const env = { ...server.env, ...docker.env, HOME: folder, PATH: path, BOBBIN_FREE_FLOOR: '0' }
const bobbin = new Bobbin(join(folder, 'third'), env)
const work = join(folder, 'tutorial')
const remote = join(folder, 'code.git')
await runProgram('git', ['init', '--bare', remote])
const person = { GIT_AUTHOR_NAME: 'Test', GIT_AUTHOR_EMAIL: 'test@test.invalid' }
const committer = { GIT_COMMITTER_NAME: 'Test', GIT_COMMITTER_EMAIL: 'test@test.invalid' }
const [command, ...before] = AS_USERS_DO
const script = join(repository, 'test/tutorial/tutorial.sh')
const resolve = (name: string) =>
  bobbin.json<{ topHash: string; message: string; metadata: { bobbin: { hashes: Record<string, string> } } }>(
    'resolve',
    `${bucket}/${name}`,
  )

t.test('the tutorial', { timeout: 550_000 }, async t => {
  const { status, stdout, stderr } = await runProgram(command!, [...before, script, work], {
    env: { ...process.env, ...env, ...person, ...committer, BUCKET: bucket, IMAGE: image, REMOTE: remote },
    timeoutMs: TUTORIAL_MS,
  })
  if (status !== 0) return t.fail(`the tutorial ended with ${status}: ${stdout}${stderr}`)

  const [coco, animals, model] = [
    await resolve('cv/coco'),
    await resolve('cv/animals'),
    await resolve('models/animals'),
  ] as const

  await t.test('the page has the commands that were run', async t => {
    const plain = (text: string) => text.replaceAll(/\\\n|"/g, '').replaceAll(/\s+/g, ' ')
    const run = plain(readFileSync(script, 'utf8'))
    const page = readFileSync(join(dirname(script), 'README.md'), 'utf8')
    const commands = page.match(/^\$ (?:.*\\\n)*.*/gm)!.flatMap(text => plain(text.slice(2)).split(' && '))
    t.ok(commands.length > 15)
    for (const command of commands) t.ok(run.includes(command), command)
  })

  await t.test('the animals are a package of their own, with the objects and the metadata of the first', async t => {
    t.not(animals.topHash, coco.topHash)
    const list = async (name: string) => {
      const rows = await bobbin.rows<Row>('ls', `${bucket}/${name}`, '-R')
      return new Map(rows.filter(({ type }) => type === 'file').map(row => [row.key, row]))
    }
    const [all, some] = [await list('cv/coco'), await list('cv/animals')]
    t.same([all.size, some.size], [501, 321])
    for (const [key, { physicalKey, meta }] of some) {
      if (!meta.annotations.some(one => one.supercategory === 'animal')) t.fail(`${key} is no animal`)
      if (physicalKey !== all.get(key)?.physicalKey) t.fail(`${key} was copied`)
    }
  })

  await t.test('the model is a package that names the three hashes, and quilt3 reads it', async t => {
    const { GIT_HASH: commit, DOCKER_HASH: digest, QUILT_HASH: data } = model.metadata.bobbin.hashes
    t.match(commit, /^[0-9a-f]{40}$/)
    t.equal(data, animals.topHash)
    t.equal(digest, JSON.parse(await docker.run('image', 'inspect', image))[0].RepoDigests[0].split('@')[1])
    for (const hash of [commit!, digest!, data!]) t.match(model.message, hash)
    const revision = { name: 'models/animals', registry: bucket, top_hash: model.topHash }
    const { entries, topHash } = await quilt3.call<Dump>('dump', revision)
    t.equal(topHash, model.topHash)
    for (const key of ['model.safetensors', 'log.jsonl', '.bobbin/statement.json', '.bobbin/reads.jsonl'])
      t.ok(entries[key], key)
    const dest = join(folder, 'installed')
    await quilt3.call('install', { ...revision, dest })
    t.equal((await bobbin.try('verify', `${bucket}/models/animals`, dest)).status, 0)
  })

  await t.test('another machine, which has nothing, makes the same bytes', async t => {
    t.notOk(existsSync(join(work, 'first')), 'the first machine is gone')
    t.match(stdout, /^Deleted: sha256:/m, 'and so is the image')
    t.match(stdout, /^reproduced: 2 outputs are equal, exit code 0$/m)
    t.match(stdout, /^fetch +261 objects, .* 261 opened from the cache/m, 'each image was fetched, once')
  })

  await t.test('the model knows its animals', async t => {
    const said = JSON.parse(/^\{"images": .*\}$/m.exec(stdout)![0]) as { images: number; accuracy: number; iou: number }
    t.equal(said.images, 60)
    t.ok(said.accuracy > 0.9, `accuracy ${said.accuracy}, by chance 0.5`)
    t.ok(said.iou > 0.7, `overlap ${said.iou}`)
  })

  await t.test('nothing is left behind', async t => {
    t.same(mountsBelow(folder), [])
    t.equal(await docker.run('ps', '--all', '--quiet'), '')
  })
})
