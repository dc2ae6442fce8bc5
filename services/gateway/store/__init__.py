"""The gateway's durable state: generations, their events and leases, in SQLite or PostgreSQL."""
