-- ARGV: client, number of this submission, then groups: queue, priority, delay, name, key, count, (id, body) …
-- Returns id and holder of what was not taken because its key is held. The same number again changes nothing.
local memory = base .. ':client:' .. ARGV[1]
local last = call('GET', memory)
if last then
  last = read(last)
  if last[1] == ARGV[2] then return last[2] end
end
local at, refused = 3, {}
while ARGV[at] do
  local count = tonumber(ARGV[at + 5])
  enter(ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), ARGV[at + 3], ARGV[at + 4], at + 6, count, refused)
  at = at + 6 + 2 * count
end
keep_stamp()
call('SET', memory, pack({ARGV[2], refused}), 'PX', HOUR)
return refused
