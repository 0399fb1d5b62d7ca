Statements of the positions of consumers.

-- name: first_positions
INSERT INTO consumer_positions (consumer, topic, shard, position, event_id)
SELECT $1, * FROM unnest($2::text[], $3::integer[], $4::bigint[], $5::uuid[])
ON CONFLICT DO NOTHING

-- name: move_positions
UPDATE consumer_positions AS c SET position = m.position, event_id = m.event_id
FROM unnest($2::text[], $3::integer[], $4::bigint[], $5::uuid[], $6::bigint[], $7::uuid[])
    AS m (topic, shard, from_position, from_id, position, event_id)
WHERE c.consumer = $1 AND c.topic = m.topic AND c.shard = m.shard
    AND c.position = m.from_position AND c.event_id = m.from_id
