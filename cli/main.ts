#!/usr/bin/env node
/**
 * The command line: verbs, their flags, and what becomes of errors. Each verb is a file of its own,
 * loaded when it runs, so that `bobbin --help` and quick verbs start quickly.
 */
import '../daemon/model/library-words.js'
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
                                 or quilt3's local registry)`

const LOADER_HELP = `
Training code of the same user finds the loader by itself, with the Python package bobbin-loader (loader/python) or the
Node.js client. For other code, set its address: export BOBBIN_SIDECAR=unix:$HOME/.cache/bobbin/loader/loader.sock
Without --serve and --allow, the loader gives its user everything that they may read, on a socket that only they may open.
With them, every door gives only what is named. Answers do not say why something else was refused: the loader's log does.
Other users, containers and TCP need a loader with --serve or --allow (bobbin run starts one for each run by itself):
  bobbin loader --serve s3://BUCKET/NS/NAME@3722a4 --socket /srv/loader/loader.sock
  docker run -v /srv/loader:/bobbin -e BOBBIN_SIDECAR=unix:/bobbin/loader.sock …
The loader uses the daemon of the cache, and starts it if it does not run.`

const RUN_HELP = `
The command sees GIT_HASH (and GIT_TREE), DOCKER_HASH, QUILT_HASH (and QUILT_HASH_1, _2, … in the order of the
mounts), BOBBIN_RUN, BOBBIN_OUTPUT, and BOBBIN_SIDECAR for the loader, which gives only what is mounted. bobbin run ends
with the command's own exit code. Records are in $XDG_STATE_HOME/bobbin/runs (BOBBIN_STATE).

  bobbin run --mount s3://BUCKET/cv/coco2017@3722a4:/data --output ./out --gpus all IMAGE python train.py
  bobbin run --host --mount s3://BUCKET/cv/coco2017@3722a4:/tmp/coco -- python train.py`

const REPRODUCE_HELP = `
A stranger may have written the record. Its container gets its data, its code, a loader and a folder for outputs. Everything
else that the record asks for is listed, and nothing is started before you allow each kind of it.`

const FILTER_HELP = `
Keys and metadata of entries stay as they are; metadata of folders and of the package
do not come along (set the package's with --meta).

  bobbin filter s3://BUCKET/cv/coco2017 --push s3://BUCKET/cv/coco2017-animals -m 'animals only' \\
    --where "ends_with(key, '.jpg') && contains(meta.annotations[].supercategory, 'animal')"`

settleHome()

/** The journal's priority of an error, from pino's level. */
const ERROR_PRIORITY = priorityOf(50)

/**
 * An option that may be repeated takes one value each time. Commander's own `<value...>` would take all words up to the next option,
 * the verb's arguments among them.
 */
function collect(value: string, before: readonly string[] = []): string[] {
  return [...before, value]
}

/** Flags of every verb. */
function common(command: Command): Command {
  return command
    .addOption(new Option('--json', 'results as JSON on stdout: one document, or one line per row'))
    .addOption(new Option('-q, --quiet', 'no remarks and no progress'))
    .addOption(new Option('--cache <dir>', 'the folder for manifests and objects (BOBBIN_CACHE)'))
    .addOption(new Option('--config <file>', 'TOML file with settings (BOBBIN_CONFIG)'))
    .addOption(new Option('--io-timeout <duration>', 'give up when nothing arrives for this time (default: 30s)'))
    .addOption(new Option('--offline', 'ask no registry, use only the cache'))
}

/** Flags of verbs that take a package. */
function forPackage(command: Command): Command {
  return common(command)
    .addOption(new Option('--registry <url>', 'the registry, if the package is named without a registry'))
    .addOption(new Option('--top-hash <hash>', 'the revision, as with quilt3 (instead of @HASH)'))
    .addOption(
      new Option('--quarantine', 'leave out and list hostile rows of the manifest, instead of refusing the package'),
    )
    .addHelpText('after', PACKAGE_HELP)
}

/** Flags of verbs that make a revision. */
function forRevision(command: Command): Command {
  return common(command)
    .option('-m, --message <message>', 'the message of the revision (default: no message)')
    .option('--meta <json>', "the package's metadata: a JSON object, or @FILE")
    .option('--workflow <id>', "the workflow of the registry to follow ('': no workflow)")
    .option('--parent <hash>', 'the revision that you started from: the push fails (11) if it is no longer the latest')
    .option('--force', 'push whichever revision is the latest')
    .option('--registry <url>', 'the registry, if the package is named without a registry')
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
    .option('--allow-unmatched', 'leave out metadata of keys that are not in the package')
    .option('--dir-meta <folder=json>', 'metadata of a folder, a JSON object or @FILE (may be repeated)', collect)
}

/** The names stand in the text only, so that `--help` need not load the module that knows them; settings refuse a wrong name. */
function openMode(): Option {
  return new Option(
    '--open-mode <mode>',
    'how open files are served: auto (the fastest mode that works here), passthrough, cached, or none (no opens: small files are fastest, and only first reads are recorded) (BOBBIN_OPEN_MODE)',
  )
}

/** Flags of the verbs that may start a daemon. */
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
  .showHelpAfterError('(bobbin --help shows the verbs; bobbin VERB --help shows the flags of a verb)')
  .addHelpText('after', EXIT_CODES_HELP)

forPackage(program.command('resolve <PKG>').description('the full top hash of a package')).action(async (pkg, flags) =>
  (await import('./resolve.js')).resolve(pkg, flags),
)
common(program.command('packages [REGISTRY]').description('the names in a registry'))
  .option('-l, --long', 'with the number of revisions, and the latest')
  .action(async (registry, flags) => (await import('./packages.js')).packages(registry, flags))
forPackage(program.command('log <PKG>').description('the revisions of a package, newest first'))
  .option('-n, --limit <number>', 'at most this number of revisions')
  .option('--no-messages', 'do not fetch the manifests, which hold the messages')
  .action(async (pkg, flags) => (await import('./log.js')).log(pkg, flags))
forPackage(program.command('ls <PKG> [PATH]').description('the entries of a package'))
  .option('-R, --recursive', 'with everything below')
  .option('-l, --long', 'size, hash, and whether the object is cached')
  .action(async (pkg, path, flags) => (await import('./ls.js')).ls(pkg, path, flags))
forPackage(
  program.command('cat <PKG> [KEY]').description("an entry's bytes to stdout, after all of them are verified"),
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
  .option('--push <PKG>', 'the package that gets the revision (default: the package that is read)')
  .addOption(new Option('--top-hash <hash>', 'the revision that is read, as with quilt3'))
  .action(async (pkg, values, flags) => (await import('./edit.js')).setMeta(pkg, values, flags))
forPackage(program.command('install <PKG> <DIR>').description('verified copies in a folder; run it again to resume'))
  .option('--path <glob>', 'only entries that match (may be repeated)', collect)
  .option('--strip-path', 'put what lies in the folder --path directly into DIR, as quilt3 does')
  .option('--register', "leave the manifest in quilt3's local registry, where quilt3.Package.browse(NAME) finds it")
  .action(async (pkg, dir, flags) => (await import('./install.js')).install(pkg, dir, flags))
forPackage(
  program
    .command('verify <PKG> <DIR>')
    .description('compare a folder with a revision; hashes every file, on all cores'),
)
  .option('--path <glob>', 'only entries and files that match (may be repeated)', collect)
  .option('--extra-files-ok', 'files that the package does not have do not count as a difference')
  .action(async (pkg, dir, flags) => (await import('./verify.js')).verify(pkg, dir, flags))
withMetadata(
  forRevision(
    program
      .command('push <DIR> <PKG>')
      .description(
        'make a revision of a folder or of s3://BUCKET/PREFIX/; uploads only changed objects; run it again to resume',
      ),
  ),
)
  .option('--no-copy', 'with s3://BUCKET/PREFIX/: leave the objects where they lie')
  .action(async (dir, pkg, flags) => (await import('./push.js')).push(dir, pkg, flags))
forRevision(
  program
    .command('filter <PKG>')
    .description('list a subset, or make a revision of it; copies no object')
    .requiredOption('--where <expression>', 'the entries: JMESPath over {key, size, hash, meta}')
    .option('--push <PKG>', 'the package that gets the revision (default: list the entries, as ls -R does)'),
)
  .addOption(new Option('--top-hash <hash>', 'the revision that is read, as with quilt3'))
  .addOption(new Option('--quarantine', 'leave out hostile rows, instead of refusing the package'))
  .addHelpText('after', FILTER_HELP)
  .action(async (pkg, flags) => (await import('./filter.js')).filter(pkg, flags))
withMetadata(
  forRevision(
    program
      .command('edit <PKG>')
      .description('make a revision that differs in some entries; fetches no other entry')
      .option('--add <key=file>', 'add an entry, or replace it; write == for a = in the key (may be repeated)', collect)
      .option('--remove <glob>', 'remove entries; a folder: everything below it (may be repeated)', collect)
      .requiredOption('--push [PKG]', 'the package that gets the revision (without PKG: the package that is read)'),
  ),
)
  .addOption(new Option('--top-hash <hash>', 'the revision that is read, as with quilt3'))
  .action(async (pkg, flags) => (await import('./edit.js')).edit(pkg, flags))
forRevision(
  program
    .command('copy <PKG> <REGISTRY>')
    .description(
      'copy a package with its objects to another registry, with the same top hash; S3 copies them by itself where it can',
    )
    .option('--name <NS/NAME>', 'the name there (default: the same name)')
    .option(
      '--where <expression>',
      'JMESPath over {key, size, hash, meta}: only these entries, as a revision of their own',
    ),
)
  .addOption(new Option('--top-hash <hash>', 'the revision that is copied, as with quilt3'))
  .action(async (pkg, registry, flags) => (await import('./copy.js')).copy(pkg, registry, flags))
common(program.command('rollback <PKG> <HASH>').description('make an earlier revision the latest again'))
  .option('--registry <url>', 'the registry, if the package is named without a registry')
  .option('--force', 'also to a revision that is not in the history of this name')
  .action(async (pkg, hash, flags) => (await import('./rollback.js')).rollback(pkg, hash, flags))
forPackage(
  program
    .command('delete <PKG>')
    .description('remove a revision (PKG@HASH) or a name from its registry; manifests and objects stay'),
)
  .option('--yes', 'do it; without --yes it is only listed')
  .action(async (pkg, flags) => (await import('./delete.js')).deletePackage(pkg, flags))
forPackage(
  program
    .command('diff <PKG> <PKG>')
    .description('what was added, removed and changed between two revisions, and how many bytes there are to fetch'),
).action(async (from, to, flags) => (await import('./diff.js')).diff(from, to, flags))
forDaemon(
  forPackage(program.command('mount <PKG> <DIR>').description('mount a package; returns when the mount answers')),
)
  .option('--allow-other', 'other users may enter (containers need it; default for root)')
  .option('--uid <number>', 'owner of the files', Number)
  .option('--gid <number>', 'group of the files', Number)
  .option('--umask <octal>', 'mode bits to take away', text => Number.parseInt(text, 8))
  .option('--mkdir', 'make the mountpoint when it is missing')
  .option(
    '--scratch <dir>',
    'let programs write above the package: keep what they write in this folder (as root, or with fuse-overlayfs)',
  )
  .option('--list-attributes', 'list extended attributes (getfattr -d), which programs that copy files then copy, too')
  .addOption(openMode())
  .action(async (pkg, dir, flags) => (await import('./mount.js')).mount(pkg, dir, flags))
common(program.command('umount <DIR>').description('unmount'))
  .option('-f, --force', 'also while files are open (they stay readable until they are closed) or a run uses the mount')
  .action(async (dir, flags) => (await import('./umount.js')).umount(dir, flags))
common(program.command('stop').description('stop the daemon and all its mounts'))
  .option('-f, --force', 'also while files are open, or runs use its mounts')
  .action(async flags => (await import('./stop.js')).stop(flags))
common(program.command('status').description('mounts, cache and fetches of the daemon')).action(async flags =>
  (await import('./status.js')).status(flags),
)
common(
  program.command('reload').description("give the daemon this command's settings and credentials; mounts stay"),
).action(async flags => (await import('./reload.js')).reload(flags))
common(program.command('doctor').description('what this machine lacks, and how to mend it')).action(async flags =>
  (await import('./doctor.js')).doctor(flags),
)
forDaemon(common(program.command('daemon').description('run the daemon in the foreground')))
  .addOption(openMode())
  .action(async flags => (await import('./daemon.js')).daemon(flags))
common(
  program.command('loader').description('serve shuffled, sharded, resumable batches for training, in the foreground'),
)
  .option('--socket <path>', 'the unix socket to listen on (default: loader/loader.sock in the cache folder)')
  .option(
    '--state <folder>',
    'the folder for its own files, for a user who may only read the cache (default: the cache folder)',
  )
  .option(
    '--serve <pkg>',
    'a package that others may read, at its current revision (may be repeated; BOBBIN_SERVE)',
    collect,
  )
  .option('--allow <registry>', 'a registry that others may read as a whole (may be repeated; BOBBIN_ALLOW)', collect)
  .addOption(
    new Option(
      '--mounted-at <dir>',
      'where clients have a package of --serve mounted (repeated, in the order of --serve)',
    )
      .argParser(collect)
      .hideHelp(),
  )
  .option('--listen <host:port>', 'listen on TCP; needs a token, and --serve or --allow')
  .option('--token-file <file>', 'the file with the token for TCP (or BOBBIN_LOADER_TOKEN)')
  .option('--step-timeout <duration>', 'answer "ask again" when a step is not ready after this time (default: 30s)')
  .option('--lease-timeout <duration>', 'evict the files of a client that is silent for this time (default: 2m)')
  .option('--drain-timeout <duration>', 'finish answers under way for this time after SIGTERM (default: 30s)')
  .option('--stuck-timeout <duration>', 'cut off a client that takes no byte for this time (default: 10m)')
  .option('--ahead <size>', 'how much to fetch ahead (default: 4GiB, at most a quarter of the cache)')
  .option('--streams-max <number>', 'answers under way at once; each takes up to 4 MiB of memory (default: 256)')
  .option('--deliveries <file>', 'the file for what was delivered (default: loader/v1 in the cache folder)')
  .option('--no-deliveries', 'do not write down what was delivered')
  .option('--rehash', 'hash every object again as it is served, against a disk that lies')
  .addHelpText('after', LOADER_HELP)
  .action(async flags => (await import('./loader.js')).loader(flags))

forPackage(
  program
    .command('run [WORDS...]')
    .description('run a training container (or with --host a plain process), and record what it read'),
)
  .usage('[options] IMAGE [COMMAND...]   or   --host [options] -- COMMAND...')
  .passThroughOptions()
  .option(
    '--mount <pkg:path>',
    'mount a package (or a folder that is a mount) at this path, read-only (but see --scratch)',
    collect,
  )
  .option('--host', 'no container: run the command on this machine, with each package mounted at its path')
  .addOption(
    new Option('--engine <name>', 'docker or podman (default: the first that answers)').choices(['docker', 'podman']),
  )
  .option(
    '-e, --env <name=value>',
    'a variable for the command (NAME alone: its value here, which is not recorded)',
    collect,
  )
  .option('--output <dir>', 'the folder for outputs: /outputs in the container, BOBBIN_OUTPUT everywhere')
  .option(
    '--outputs <glob>',
    'the outputs that are the result: reproduce compares these (may be repeated; default: all)',
    collect,
  )
  .option('--push-output <pkg>', 'when the run ends well, push its outputs and its record to this package')
  .option('--workflow <id>', "the workflow that the pushed outputs follow ('': no workflow)")
  .option(
    '--code <dir>',
    'the git repository of the code, /code in the container (default: the repository of this folder)',
  )
  .option('--no-code', 'record no code')
  .option('--require-clean', 'refuse code that differs from its commit')
  .option(
    '--scratch',
    'let the command write above its packages, and record what it wrote (as root, or with fuse-overlayfs)',
  )
  .option('--no-loader', 'no loader for this run')
  .option('--key <file>', 'sign the record with this Ed25519 key, PEM (BOBBIN_RUN_KEY)')
  .option('--gpus <gpus>', "docker's; sets --shm-size 8g and ulimits memlock and stack unless you give them")
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
common(record.command('verify <RECORD>').description('check a record: statements, files, reads, signature'))
  .option('--public-key <file>', 'check the signature with this Ed25519 key, PEM')
  .action(async (text, flags) => (await import('./record.js')).verify(text, flags))
common(record.command('merge <RECORDS...>').description('make one record of the records of all nodes of a job')).action(
  async (records, flags) => (await import('./record.js')).merge(records, flags),
)
common(record.command('push <RECORD> <PKG>').description("push a run's outputs and its record to a package"))
  .option('--workflow <id>', "the workflow of the registry to follow ('': no workflow)")
  .option('--registry <url>', 'the registry, if the package is named without a registry')
  .action(async (text, pkg, flags) => (await import('./record.js')).push(text, pkg, flags))
const reproduction = common(
  program
    .command('reproduce <RECORD>')
    .description('start the same code, image and data again, and compare the outputs'),
)
  .option('--output <dir>', "where the outputs go (default: the new run's folder)")
  .option(
    '--outputs <glob>',
    "the outputs that decide (may be repeated; default: the record's --outputs, or all)",
    collect,
  )
  .option(
    '--tolerance <number>',
    'numbers in tensors (safetensors, npy, npz, torch.save) may differ by this much, absolutely (0: not at all)',
  )
for (const right of RIGHT_NAMES) reproduction.option(allowFlag(right), `let the record ${RIGHTS[right]}`)
reproduction
  .addHelpText('after', REPRODUCE_HELP)
  .action(async (text, flags) => (await import('./reproduce.js')).reproduce(text, { ...flags, version }))

/** Writes commander's error, which quotes what was typed. */
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

/** Writes an error; the journal keeps each line of it as an error (of a loader that cannot start, say). */
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
