export { DataParallel, type DataParallelOptions, dataParallel } from './data-parallel.js'
export {
  initProcessGroup,
  type ProcessBackendInfo,
  type ProcessGroupOptions,
  processBackends,
} from './init.js'
export { type Job, type JobEnd, type JobLine, type LaunchOptions, launch, type RankEnd } from './launch.js'
