CREATE TABLE webhooks (
	id INTEGER NOT NULL,
	name TEXT NOT NULL,
	description TEXT DEFAULT '' NOT NULL,
	url TEXT NOT NULL,
	secret TEXT DEFAULT '' NOT NULL,
	status TEXT DEFAULT 'ACTIVE' NOT NULL,
	events TEXT NOT NULL,
	created_ms BIGINT NOT NULL,
	updated_ms BIGINT NOT NULL,
	seen BIGINT NOT NULL,
	attempts BIGINT DEFAULT '0' NOT NULL,
	not_before DOUBLE,
	last_error TEXT DEFAULT '' NOT NULL,
	CONSTRAINT pk_webhooks PRIMARY KEY (id)
);
