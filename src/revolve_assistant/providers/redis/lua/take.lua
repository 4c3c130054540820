-- ARGV: taker, number of the last leases it has seen, limit, lease, 1: it waits if there is nothing, run of the server,
-- queues … Returns {number, 0, leases …}; {0, ms until it should look again}; {-1}: it must say hello first.
-- With a limit of 0 it stops waiting.
local taker, seen, limit, lease = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local key = taker_of(taker)
if not spoke(taker) then return {-1} end
local mine = call('HMGET', key, 'number', 'given', 'waits')
if mine[3] then call('HDEL', key, 'waits') end

-- What it was given, and may not have got: the answer was lost, or is on its way.
if tonumber(mine[1] or 0) > seen and mine[2] then
  local ids, held, small, out = read(mine[2]), {}, {}, {mine[1], 0}
  local token = taker .. ':' .. mine[1]
  local heads = call('HMGET', HEADS, unpack(ids))
  for i, id in ipairs(ids) do
    local head = heads[i] and read(heads[i])
    if head and head[TOKEN] == token and call('ZSCORE', leased_of(head[QUEUE]), id) then
      local at = #out
      out[at + 1], out[at + 2], out[at + 3], out[at + 4] = id, head[QUEUE], head[DELIVERIES], false
      held[#held + 1] = id
      if head[SIZE] <= TOLD then small[#small + 1] = id end
    end
  end
  add_bodies(out, 2, held, small)
  return out
end
if limit == 0 then return {0, 0} end

local queues, more = {}, {}
for i = 7, #ARGV do
  local queue = ARGV[i]
  queues[#queues + 1] = queue
  if promote(queue) then more[#more + 1] = queue end
end

-- Look whether takers are dead: their connection to this very server is gone, and stays so; or they were at another
-- one, or at this one before it was started anew, and have not come back in the time that they may need for it.
local look = tonumber(call('HGET', STATE, 'look') or 0)
if now >= look or look > now + 2 * LOOK then
  local next = LOOK
  local takers = call('ZRANGE', TAKERS, 0, -1, 'WITHSCORES')
  for i = 1, #takers, 2 do
    local other = takers[i]
    if other ~= taker then
      local known = call('HMGET', taker_of(other), 'run', 'gone', 'away')
      if not known[1] then
        call('ZREM', TAKERS, other)
      elseif alive(other) then
        if known[2] then call('HDEL', taker_of(other), 'gone') end
      elseif known[1] ~= '' and ARGV[6] ~= '' then
        next = LOOK / 2
        if not known[2] then
          call('HSET', taker_of(other), 'gone', ARGV[6] .. ' ' .. string.format('%.0f', now))
        else
          local run, since = string.match(known[2], '^(%S*) (%S+)$')
          if run ~= ARGV[6] then
            call('HSET', taker_of(other), 'gone', ARGV[6] .. ' ' .. string.format('%.0f', now))
          elseif now - tonumber(since) >= (known[1] == run and GONE or tonumber(known[3]) or HOUR) then
            dismiss(other)
          end
        end
      end
    end
  end
  look = now + next
  call('HSET', STATE, 'look', string.format('%.0f', look))
  call('PEXPIRE', STATE, HOUR)
  local one = call('SRANDMEMBER', QUEUES)
  if one and call('EXISTS', ready_of(one), delayed_of(one), leased_of(one), names_of(one), buried_of(one)) == 0 then
    call('SREM', QUEUES, one) -- nothing is in it
  end
end

local out, number = take(taker, queues, limit, lease, GIVEN)
for _, queue in ipairs(more) do serve(queue) end
if out then
  table.insert(out, 1, 0)
  table.insert(out, 1, number)
  return out
end

local due = now + HOUR
for _, queue in ipairs(queues) do
  if call('EXISTS', ready_of(queue)) == 1 then due = now end
  local delayed = call('ZRANGE', delayed_of(queue), 0, 0, 'WITHSCORES')[2]
  if delayed then due = math.min(due, tonumber(delayed)) end
  local leased = call('ZRANGE', leased_of(queue), 0, 0, 'WITHSCORES')[2]
  if leased then due = math.min(due, tonumber(leased), look) end
  if rules then
    for _, name in ipairs(call('SMEMBERS', names_of(queue))) do
      due = math.min(due, room_due(name) or due)
    end
  end
end
if ARGV[5] == '1' and due > now then
  call('HSET', key, 'waits', pack({limit, lease, queues}))
  for _, queue in ipairs(queues) do
    call('ZADD', waiting_of(queue), now, taker)
    call('PEXPIRE', waiting_of(queue), HOUR)
  end
end
return {0, math.ceil(math.max(0, due - now))}
