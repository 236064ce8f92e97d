/**
 * The flags that every pool of piscina workers starts its threads with (`execArgv`): none of whoever started
 * us (loaders, inspectors), which cost up to half a second a thread, and no `require` of ES modules. piscina
 * tries `require` before `import`, and a thread that is ended while `require` links a module takes its whole
 * process down (Node.js 20 and 22: "FATAL ERROR: v8::Module::IsGraphAsync"); `import` does not.
 */
export const WORKER_FLAGS = ['--no-experimental-require-module']
