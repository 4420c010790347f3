export { type Job, type JobEnd, type JobLine, type LaunchOptions, launch } from './launch.js'
