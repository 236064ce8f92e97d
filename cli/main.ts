#!/usr/bin/env node
/**
 * The command line: verbs, their flags, and what becomes of errors. Each verb is a file of its own,
 * loaded when it runs, so that `bobbin --help` and quick verbs start quickly.
 */
import { readFileSync } from 'node:fs'
import { Command, CommanderError, Option } from 'commander'
import { isJournal, priorityOf } from '../daemon/control/journal.js'
import { BobbinError, escapeMessage, localError, settleHome, systemCode } from '../daemon/model/index.js'
import { EXIT_CODES_HELP, EXIT_USAGE, exitCodeOf } from './exit-codes.js'
import { allowFlag, RIGHT_NAMES, RIGHTS } from './run/rights.js'

const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
  version: string
}

const PACKAGE_HELP = `
PKG is any of:
  s3://BUCKET/NS/NAME            the latest revision
  s3://BUCKET/NS/NAME@3722a4     by top hash, or a unique prefix of at least 6 characters
  s3://BUCKET/NS/NAME:TAG        by tag: latest, or its time in Unix seconds, as bobbin log shows it
  file:///DIR/NS/NAME@HASH       a registry in a folder (./DIR/NS/NAME works, too)
  'quilt+s3://BUCKET#package=NS/NAME@HASH&path=PATH'
  NS/NAME@HASH --registry s3://BUCKET       (or BOBBIN_REGISTRY, or quilt3's default_remote_registry,
                                 or its local registry)`

const LOADER_HELP = `
Training code of the same user finds it by itself, with the Python package bobbin-loader (loader/python) or the Node.js
client; other code is told: export BOBBIN_SIDECAR=unix:$HOME/.cache/bobbin/loader/loader.sock
Without --serve and --allow it gives its user all that they may read, on a socket that they alone may open. With them, every
door gives what is named and nothing else, and its answers say nothing of what else there is: the log does. Other users,
containers and TCP need such a loader (bobbin run starts one for each run by itself):
  bobbin loader --serve s3://BUCKET/NS/NAME@3722a4 --socket /srv/loader/loader.sock
  docker run -v /srv/loader:/bobbin -e BOBBIN_SIDECAR=unix:/bobbin/loader.sock …
It uses the daemon of the cache, and starts one when none runs.`

const RUN_HELP = `
The command sees GIT_HASH (and GIT_TREE), DOCKER_HASH, QUILT_HASH (and QUILT_HASH_1, _2, … in the order of the
mounts), BOBBIN_RUN, BOBBIN_OUTPUT, and BOBBIN_SIDECAR for the loader, which gives what is mounted and nothing else. It ends with the command's own
exit code. Records are in $XDG_STATE_HOME/bobbin/runs (BOBBIN_STATE).

  bobbin run --mount s3://BUCKET/cv/coco2017@3722a4:/data --output ./out --gpus all IMAGE python train.py
  bobbin run --host --mount s3://BUCKET/cv/coco2017@3722a4:/tmp/coco -- python train.py`

const REPRODUCE_HELP = `
A record is somebody's words. Its container gets its data, its code, its loader and a folder for outputs. Whatever else the
record asks for is listed, and nothing is started before you allow each kind of it.`

const FILTER_HELP = `
Keys and metadata of entries stay as they are; metadata of folders and of the package do not come along (--meta).

  bobbin filter s3://BUCKET/cv/coco2017 --push s3://BUCKET/cv/coco2017-animals -m 'animals only' \\
    --where "ends_with(key, '.jpg') && contains(meta.annotations[].supercategory, 'animal')"`

/**
 * An option that may be repeated takes one value each time. Commander's own `<value...>` would take all words up to the next option,
 * the verb's arguments among them.
 */
settleHome()

/** pino's level of errors, for the journal. */
const ERROR_PRIORITY = priorityOf(50)

function collect(value: string, before: readonly string[] = []): string[] {
  return [...before, value]
}

/** Flags of every verb. */
function common(command: Command): Command {
  return command
    .addOption(new Option('--json', 'results as JSON on stdout: one document, or one line a row'))
    .addOption(new Option('-q, --quiet', 'no remarks and no progress'))
    .addOption(new Option('--cache <dir>', 'where manifests and objects are kept (BOBBIN_CACHE)'))
    .addOption(new Option('--config <file>', 'TOML file with settings (BOBBIN_CONFIG)'))
    .addOption(new Option('--io-timeout <duration>', 'give up when nothing arrives for so long (default: 30s)'))
    .addOption(new Option('--offline', 'ask no registry: only what the cache holds'))
}

/** Flags of verbs that take a package. */
function forPackage(command: Command): Command {
  return common(command)
    .addOption(new Option('--registry <url>', 'the registry of a package that is named without one'))
    .addOption(new Option('--top-hash <hash>', 'the revision, as quilt3 users give it'))
    .addOption(
      new Option(
        '--quarantine',
        'leave hostile rows of the manifest out, and list them, instead of refusing the package',
      ),
    )
    .addHelpText('after', PACKAGE_HELP)
}

/** Flags of verbs that make a revision. */
function forRevision(command: Command): Command {
  return common(command)
    .option('-m, --message <message>', 'what is new (without it: none)')
    .option('--meta <json>', "the package's metadata, a JSON object, or @FILE with one")
    .option('--workflow <id>', "the registry's workflow to follow ('': none)")
    .option('--parent <hash>', 'the revision that this was made from: pushed only if it is still the latest')
    .option('--force', 'push over whatever is the latest')
    .option('--registry <url>', 'the registry of a package that is named without one')
}

/** Flags of verbs that give metadata to entries and folders. */
function withMetadata(command: Command): Command {
  return command
    .option(
      '--meta-from <file>',
      'metadata of entries: .jsonl ({"key": …, …}), .csv or .tsv (a column "key"), .json (COCO annotations); may be repeated',
      collect,
    )
    .option('--meta-under <folder>', 'keys and file names in --meta-from are below this folder of the package')
    .option('--allow-unmatched', 'leave out metadata of what is not in the package')
    .option('--dir-meta <folder=json>', 'metadata of a folder, a JSON object or @FILE (may be repeated)', collect)
}

/** Says no names of its own, so that `--help` need not load what knows them; a wrong one is refused in settings. */
function openMode(): Option {
  return new Option(
    '--open-mode <mode>',
    'how open files are served: auto (the fastest here), passthrough, cached, or none (no opens: small files are fastest, and only first reads are recorded) (BOBBIN_OPEN_MODE)',
  )
}

/** Flags of the verbs that start a daemon where none runs. */
function forDaemon(command: Command): Command {
  return command
    .option('--cache-limit <size>', 'how much the cache may take, such as 200GiB (BOBBIN_CACHE_LIMIT)')
    .option('--free-floor <size>', 'how much of the disk the cache leaves free, such as 10GiB (BOBBIN_FREE_FLOOR)')
}

const program = new Command('bobbin')
  .description(
    'Mounts one revision of a Quilt data package, named by its top hash, as a read-only filesystem: lazy, verified, cached.',
  )
  .version(version)
  .enablePositionalOptions()
  .showHelpAfterError('(bobbin --help shows the verbs; bobbin VERB --help shows one)')
  .addHelpText('after', EXIT_CODES_HELP)

forPackage(program.command('resolve <PKG>').description('the full top hash of a package')).action(async (pkg, flags) =>
  (await import('./resolve.js')).resolve(pkg, flags),
)
common(program.command('packages [REGISTRY]').description('the names in a registry'))
  .option('-l, --long', 'how many revisions, and the latest')
  .action(async (registry, flags) => (await import('./packages.js')).packages(registry, flags))
forPackage(program.command('log <PKG>').description('the revisions of a package, newest first'))
  .option('-n, --limit <number>', 'at most so many')
  .option('--no-messages', 'do not fetch the manifests, which hold the messages')
  .action(async (pkg, flags) => (await import('./log.js')).log(pkg, flags))
forPackage(program.command('ls <PKG> [PATH]').description('the entries of a package'))
  .option('-R, --recursive', 'everything below')
  .option('-l, --long', 'size, hash, and whether the object is cached')
  .action(async (pkg, path, flags) => (await import('./ls.js')).ls(pkg, path, flags))
forPackage(
  program.command('cat <PKG> [KEY]').description("an entry's bytes to stdout, none before all are verified"),
).action(async (pkg, key, flags) => (await import('./cat.js')).cat(pkg, key, flags))
const meta = program.command('meta <PKG> [KEY]').description('metadata of the package, of a directory or of an entry')
forPackage(meta).action(async (pkg, key, flags) => (await import('./meta.js')).meta(pkg, key, flags))
withMetadata(
  forRevision(
    meta
      .command('set <PKG> [KEY=JSON...]')
      .description(
        'a revision with other metadata, of entries, of folders (KEY=JSON or KEY=@FILE) or of the package (--meta)',
      ),
  ),
)
  .option('--push <PKG>', 'the package that it becomes a revision of (default: the one that is read)')
  .addOption(new Option('--top-hash <hash>', 'the revision that is read, as quilt3 users give it'))
  .action(async (pkg, values, flags) => (await import('./edit.js')).setMeta(pkg, values, flags))
forPackage(program.command('install <PKG> <DIR>').description('verified copies in a folder; run it again to resume'))
  .option('--path <glob>', 'only entries that match (may be repeated)', collect)
  .option('--strip-path', 'what lies in the folder --path lies directly in DIR, as quilt3 has it')
  .option('--register', "leave the manifest in quilt3's local registry, where quilt3.Package.browse(NAME) finds it")
  .action(async (pkg, dir, flags) => (await import('./install.js')).install(pkg, dir, flags))
forPackage(
  program.command('verify <PKG> <DIR>').description('is this folder this revision? every file is hashed, on all cores'),
)
  .option('--path <glob>', 'only entries, and files, that match (may be repeated)', collect)
  .option('--extra-files-ok', 'files that the package does not have are no difference')
  .action(async (pkg, dir, flags) => (await import('./verify.js')).verify(pkg, dir, flags))
withMetadata(
  forRevision(
    program
      .command('push <DIR> <PKG>')
      .description(
        'a folder, or s3://BUCKET/PREFIX/, becomes a revision; unchanged objects are not uploaded again; run it again to resume',
      ),
  ),
)
  .option('--no-copy', 'of s3://BUCKET/PREFIX/: leave the objects where they lie')
  .action(async (dir, pkg, flags) => (await import('./push.js')).push(dir, pkg, flags))
forRevision(
  program
    .command('filter <PKG>')
    .description('lists a subset, or makes it a revision of its own; no object is copied')
    .requiredOption('--where <expression>', 'JMESPath over {key, size, hash, meta}: which entries')
    .option('--push <PKG>', 'the package that they become (default: they are listed, as ls -R does)'),
)
  .addOption(new Option('--top-hash <hash>', 'the revision that is read, as quilt3 users give it'))
  .addOption(new Option('--quarantine', 'leave out hostile rows instead of refusing the package'))
  .addHelpText('after', FILTER_HELP)
  .action(async (pkg, flags) => (await import('./filter.js')).filter(pkg, flags))
withMetadata(
  forRevision(
    program
      .command('edit <PKG>')
      .description('a revision that differs in some entries; the others are not fetched')
      .option(
        '--add <key=file>',
        'a new entry, or another file in place of one; a = of the key is written == (may be repeated)',
        collect,
      )
      .option('--remove <glob>', 'entries that go; a folder: all below it (may be repeated)', collect)
      .requiredOption('--push [PKG]', 'the package that it becomes a revision of (without PKG: the one that is read)'),
  ),
)
  .addOption(new Option('--top-hash <hash>', 'the revision that is read, as quilt3 users give it'))
  .action(async (pkg, flags) => (await import('./edit.js')).edit(pkg, flags))
forRevision(
  program
    .command('copy <PKG> <REGISTRY>')
    .description(
      'a package in another registry, with its objects and the same top hash; S3 copies them by itself where it can',
    )
    .option('--name <NS/NAME>', 'its name there (default: as it is)')
    .option(
      '--where <expression>',
      'JMESPath over {key, size, hash, meta}: only these entries, as a revision of their own',
    ),
)
  .addOption(new Option('--top-hash <hash>', 'the revision that is copied, as quilt3 users give it'))
  .action(async (pkg, registry, flags) => (await import('./copy.js')).copy(pkg, registry, flags))
common(program.command('rollback <PKG> <HASH>').description('an earlier revision is the latest again'))
  .option('--registry <url>', 'the registry of a package that is named without one')
  .option('--force', 'also a revision that is not in the history of this name')
  .action(async (pkg, hash, flags) => (await import('./rollback.js')).rollback(pkg, hash, flags))
forPackage(
  program
    .command('delete <PKG>')
    .description('a revision (PKG@HASH) or a name goes from its registry; manifests and objects stay'),
)
  .option('--yes', 'do it; without this it is only listed')
  .action(async (pkg, flags) => (await import('./delete.js')).deletePackage(pkg, flags))
forPackage(
  program
    .command('diff <PKG> <PKG>')
    .description('what was added, removed and changed from one to the other, and the bytes to fetch for it'),
).action(async (from, to, flags) => (await import('./diff.js')).diff(from, to, flags))
forDaemon(
  forPackage(program.command('mount <PKG> <DIR>').description('mount a package; returns when the mount answers')),
)
  .option('--allow-other', 'other users may enter (containers need it; default for root)')
  .option('--uid <number>', 'owner of the files', Number)
  .option('--gid <number>', 'group of the files', Number)
  .option('--umask <octal>', 'mode bits to take away', text => Number.parseInt(text, 8))
  .option('--mkdir', 'make the mountpoint when it is missing')
  .addOption(openMode())
  .action(async (pkg, dir, flags) => (await import('./mount.js')).mount(pkg, dir, flags))
common(program.command('umount <DIR>').description('unmount'))
  .option('-f, --force', 'also while files are open (they stay readable until they are closed) or a run uses it')
  .action(async (dir, flags) => (await import('./umount.js')).umount(dir, flags))
common(program.command('stop').description('stop the daemon and all its mounts'))
  .option('-f, --force', 'also while files are open, or runs use its mounts')
  .action(async flags => (await import('./stop.js')).stop(flags))
common(program.command('status').description('mounts, cache and fetches of the daemon')).action(async flags =>
  (await import('./status.js')).status(flags),
)
common(
  program
    .command('reload')
    .description("the daemon takes this command's settings and credentials, and keeps its mounts"),
).action(async flags => (await import('./reload.js')).reload(flags))
common(program.command('doctor').description('can this machine do it, and how to fix what is missing')).action(
  async flags => (await import('./doctor.js')).doctor(flags),
)
forDaemon(common(program.command('daemon').description('the daemon, in the foreground')))
  .addOption(openMode())
  .action(async flags => (await import('./daemon.js')).daemon(flags))
common(
  program
    .command('loader')
    .description('the streaming service: shuffled, sharded, resumable batches for training, in the foreground'),
)
  .option('--socket <path>', 'the unix socket to listen on (default: loader/loader.sock in the cache folder)')
  .option(
    '--state <folder>',
    'where its own files are kept, for a user who may only read the cache (default: the cache folder)',
  )
  .option(
    '--serve <pkg>',
    'a package that others may have, at the revision of now (may be repeated; BOBBIN_SERVE)',
    collect,
  )
  .option('--allow <registry>', 'a registry of which others may have all (may be repeated; BOBBIN_ALLOW)', collect)
  .addOption(
    new Option(
      '--mounted-at <dir>',
      'where clients have a package of --serve mounted (repeated, in the order of --serve)',
    )
      .argParser(collect)
      .hideHelp(),
  )
  .option('--listen <host:port>', 'listen on TCP; needs a token, and --serve or --allow')
  .option('--token-file <file>', 'where the token for TCP is (or BOBBIN_LOADER_TOKEN)')
  .option('--step-timeout <duration>', 'answer "ask again" when a step is not here after so long (default: 30s)')
  .option('--lease-timeout <duration>', 'a client that is not heard of loses its files to eviction (default: 2m)')
  .option('--drain-timeout <duration>', 'after SIGTERM, for answers under way (default: 30s)')
  .option('--stuck-timeout <duration>', 'a client that takes no byte for so long is cut off (default: 10m)')
  .option('--ahead <size>', 'how much to fetch ahead (default: 4GiB, at most a quarter of the cache)')
  .option('--streams-max <number>', 'answers under way at once; each takes up to 4 MiB of memory (default: 256)')
  .option('--deliveries <file>', 'where what was delivered is written down (default: loader/v1 in the cache folder)')
  .option('--no-deliveries', 'write it down nowhere')
  .option('--rehash', 'hash every object again as it is served, against a disk that lies')
  .addHelpText('after', LOADER_HELP)
  .action(async flags => (await import('./loader.js')).loader(flags))

forPackage(
  program
    .command('run [WORDS...]')
    .description('a training container (or --host: a bare process), and a record of what it read'),
)
  .usage('[options] IMAGE [COMMAND...]   or   --host [options] -- COMMAND...')
  .passThroughOptions()
  .option('--mount <pkg:path>', 'a package (or a folder that is a mount) and where it is seen, read-only', collect)
  .option('--host', 'no container: the command runs here, and a package is mounted at its path')
  .addOption(
    new Option('--engine <name>', 'docker or podman (default: the first that answers)').choices(['docker', 'podman']),
  )
  .option(
    '-e, --env <name=value>',
    'a variable for the command (NAME: as it is here, and recorded by its name alone)',
    collect,
  )
  .option('--output <dir>', 'where the command writes its outputs: /outputs in the container, BOBBIN_OUTPUT anywhere')
  .option(
    '--outputs <glob>',
    'of the outputs, those that are the result: reproduce asks whether they are equal (may be repeated; default: all)',
    collect,
  )
  .option('--push-output <pkg>', 'when it ends well, its outputs and its record become a revision of this package')
  .option('--workflow <id>', "of the outputs' registry, the workflow that they follow ('': none)")
  .option('--code <dir>', 'the git repository of the code, /code in the container (default: the one of this folder)')
  .option('--no-code', 'record no code')
  .option('--require-clean', 'refuse code that differs from its commit')
  .option('--no-loader', 'no loader for this run')
  .option('--key <file>', 'sign the record with this Ed25519 key, PEM (BOBBIN_RUN_KEY)')
  .option('--gpus <gpus>', "docker's; sets --shm-size 8g and ulimits memlock and stack unless they are given")
  .option('--shm-size <size>', "docker's")
  .option('--ulimit <name=limit>', "docker's", collect)
  .option('--ipc <mode>', "docker's")
  .option('--user <user>', "docker's")
  .option('--workdir <dir>', "docker's (default: /code)")
  .option('--network <network>', "docker's")
  .option('--cpus <number>', "docker's")
  .option('--memory <size>', "docker's")
  .option('--entrypoint <command>', "docker's")
  .option('--volume <volume>', "docker's", collect)
  .addHelpText('after', RUN_HELP)
  .action(async (words, flags) => (await import('./run.js')).run(words, { ...flags, version }))
common(program.command('runs [ID]').description('what ran, on which hashes')).action(async (id, flags) =>
  (await import('./runs.js')).runs(id, flags),
)
const record = program.command('record').description('records of runs')
common(record.command('verify <RECORD>').description('is it sound: statements, files, reads, signature'))
  .option('--public-key <file>', 'check the signature with this Ed25519 key, PEM')
  .action(async (text, flags) => (await import('./record.js')).verify(text, flags))
common(record.command('merge <RECORDS...>').description('the records of the nodes of one job become one')).action(
  async (records, flags) => (await import('./record.js')).merge(records, flags),
)
common(
  record.command('push <RECORD> <PKG>').description("a run's outputs become a revision of a package, its record in it"),
)
  .option('--workflow <id>', "the registry's workflow to follow ('': none)")
  .option('--registry <url>', 'the registry of a package that is named without one')
  .action(async (text, pkg, flags) => (await import('./record.js')).push(text, pkg, flags))
const reproduction = common(
  program.command('reproduce <RECORD>').description('the same hashes again, and whether the outputs are equal'),
)
  .option('--output <dir>', "where the outputs go (default: the new run's folder)")
  .option(
    '--outputs <glob>',
    "the outputs that decide (may be repeated; default: the record's --outputs, or all)",
    collect,
  )
  .option(
    '--tolerance <number>',
    'outputs of tensors (safetensors, npy, npz, torch.save) may differ by so much in a number, absolutely (0: not at all)',
  )
for (const right of RIGHT_NAMES) reproduction.option(allowFlag(right), `let the record ${RIGHTS[right]}`)
reproduction
  .addHelpText('after', REPRODUCE_HELP)
  .action(async (text, flags) => (await import('./reproduce.js')).reproduce(text, { ...flags, version }))

/** What was typed is quoted in it. */
function outputError(text: string, write: (text: string) => void): void {
  write(`${escapeMessage(text.trimEnd().replace(/\n(?=\(Did you mean)/, '\n  '))}\n`)
}

for (const command of [...program.commands, ...meta.commands, ...record.commands])
  command.exitOverride().configureHelp({ sortOptions: false }).configureOutput({ outputError })
program.exitOverride().configureOutput({ outputError })

try {
  await program.parseAsync()
} catch (error) {
  process.exitCode = await exitCodeFor(error)
}
// Sockets that are kept alive, and a worker or two, must not hold up the end.
process.exit()

/** Of a loader that cannot start, say, the journal keeps each line as an error. */
function complain(text: string): void {
  const prefix = isJournal() ? `<${ERROR_PRIORITY}>` : ''
  process.stderr.write(text.replaceAll(/^(?=.)/gm, prefix))
}

async function exitCodeFor(error: unknown): Promise<number> {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : EXIT_USAGE
  if (error instanceof BobbinError) {
    const { endingSignal, ENDING_SIGNALS } = await import('./context.js')
    if (error.code === 'INTERRUPTED' && endingSignal !== undefined) {
      process.stderr.write('bobbin: interrupted\n')
      return ENDING_SIGNALS[endingSignal]
    }
    complain(`bobbin: ${escapeMessage(error.message)}\n`)
    return exitCodeOf(error.code)
  }
  // A call of the system that nobody expected to fail: a full disk, say. It is a matter of this machine, and not a bug.
  if (error instanceof Error && 'syscall' in error && systemCode(error) !== undefined) {
    const { message, code } = localError(`go on (${error.syscall})`, error)
    complain(`bobbin: ${escapeMessage(message)}\n`)
    return exitCodeOf(code)
  }
  complain(
    `bobbin: this is a bug, please report it\n${escapeMessage(String(error instanceof Error ? error.stack : error))}\n`,
  )
  return 1
}
