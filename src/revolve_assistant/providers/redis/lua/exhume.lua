-- ARGV: id, number of this request. Returns as buried.lua; the same request again gets the same.
local memory = base .. ':exhumed:' .. ARGV[2]
local done = call('GET', memory)
if done then return read(done) end
local head, body = unbury(ARGV[1])
if not head then return {} end
head = read(head)
local out = {ARGV[1], body, head[1], head[2], head[3], head[4], string.format('%.3f', head[5])}
call('SET', memory, pack(out), 'PX', 60000)
return out
