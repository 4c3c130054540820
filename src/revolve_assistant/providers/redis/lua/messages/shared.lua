-- A channel is one string: its incarnation (8 bytes), how many bytes were dropped from its front (6), its cap (6), and
-- then its messages, each after its length (4). What is appended is published under the key's own name, with the
-- incarnation and the place where it stands, so that a reader knows whether it has all that came before.
local call, pack, unpack = redis.call, struct.pack, struct.unpack
local HEAD = 20
local TOLD = 65536 -- bytes that go with a notice; of more only the notice is published, and readers fetch it

local function head_of(key)
  local head = call('GETRANGE', key, 0, HEAD - 1)
  if #head == HEAD then return string.sub(head, 1, 8), unpack('>I6I6', head, 9) end
end

-- Under the cap again, and a quarter below it, so that it is not done for each message. The newest stays.
local function trim(key, incarnation, base, cap, total)
  local at, least = 0, total - math.floor(cap * 3 / 4)
  while at < least do
    local chunk, pos = call('GETRANGE', key, HEAD + at, HEAD + at + 65535), 1
    local moved = false
    while at < least and pos + 3 <= #chunk do
      local size = 4 + unpack('>I4', chunk, pos)
      if at + size >= total then least = at break end
      at, pos, moved = at + size, pos + size, true
    end
    if not moved then break end
  end
  if at > 0 then
    local rest = call('GETRANGE', key, HEAD + at, -1)
    call('SET', key, incarnation .. pack('>I6I6', base + at, cap) .. rest, 'KEEPTTL')
  end
end
