/**
 * Where a user's own folders are, for users that have no home, too: OpenShift and `docker --user` start programs as a number
 * that /etc/passwd does not know, and services often have no HOME. os.homedir() throws then, and an empty HOME makes it
 * relative.
 */
import { lstatSync } from 'node:fs'
import { userInfo } from 'node:os'
import { isAbsolute, join } from 'node:path'
import { systemCode } from './errors.js'

/** The home of those who have none. Nothing is there, so nothing is read, and nobody makes anything there. */
export const NO_HOME = '/nonexistent'

export function homeFolder(environment: NodeJS.ProcessEnv = process.env): string {
  if (environment.HOME !== undefined && isAbsolute(environment.HOME)) return environment.HOME
  try {
    // Not homedir(), which believes HOME.
    const { homedir: home } = userInfo()
    return isAbsolute(home) ? home : NO_HOME
  } catch {
    return NO_HOME
  }
}

/** Libraries ask os.homedir(), so this process and its children get a HOME. Called once, by each of our programs. */
export function settleHome(): void {
  const home = homeFolder()
  if (process.env.HOME !== home) process.env.HOME = home
}

/** For a command of the user's: without a HOME that we have made up. */
export function asFound(environment: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const { HOME, ...others } = environment
  return HOME === NO_HOME ? others : environment
}

/**
 * One of the folders of the XDG base directory specification; a relative one is to be ignored, as the specification has it.
 * `below`: where it is in the home, when the variable does not say.
 */
export function xdgFolder(
  variable: 'XDG_CACHE_HOME' | 'XDG_CONFIG_HOME' | 'XDG_DATA_HOME' | 'XDG_STATE_HOME',
  below: string,
  environment: NodeJS.ProcessEnv = process.env,
): string {
  const named = environment[variable]
  return named !== undefined && isAbsolute(named) ? named : join(homeFolder(environment), below)
}

/** True: a folder above it is closed to this user, as when HOME is another user's. Nothing that lies there is meant for us. */
export function isOutOfReach(path: string): boolean {
  try {
    lstatSync(path)
    return false
  } catch (error) {
    return systemCode(error) === 'EACCES'
  }
}

/** False: it would lie in the home of a user who has none. */
export function isInHome(path: string): boolean {
  return !path.startsWith(`${NO_HOME}/`)
}

/** The name, or the number of a user without one. */
export function userName(): string {
  try {
    return userInfo().username
  } catch {
    return String(process.getuid?.() ?? 'this user')
  }
}
