// 4,000 tensors of 1 MB in a synchronous loop; prints by how many MB the largest resident set exceeds the one before.
import { ones, scope } from '../../dist/index.js'

scope(() => ones([1]))
const before = process.memoryUsage().rss
for (let i = 0; i < 1000; i++) {
  scope(() => {
    const first = ones([512, 512])
    first.add(i).mul(2).sum().item()
    scope(() => first.sub(1))
  })
}
console.log(Math.max(0, process.resourceUsage().maxRSS * 1024 - before) / 1e6)
