CREATE TABLE users (
	id INTEGER NOT NULL,
	name TEXT NOT NULL,
	password TEXT DEFAULT '' NOT NULL,
	created DOUBLE NOT NULL,
	CONSTRAINT pk_users PRIMARY KEY (id),
	CONSTRAINT uq_users_name UNIQUE (name)
);
CREATE TABLE access_tokens (
	id INTEGER NOT NULL,
	"key" TEXT NOT NULL,
	user_id INTEGER NOT NULL,
	name TEXT NOT NULL,
	kind TEXT NOT NULL,
	digest TEXT NOT NULL,
	scopes TEXT DEFAULT '[]' NOT NULL,
	rate DOUBLE DEFAULT '0' NOT NULL,
	created DOUBLE NOT NULL,
	expires DOUBLE,
	CONSTRAINT pk_access_tokens PRIMARY KEY (id),
	CONSTRAINT uq_access_tokens_key UNIQUE ("key"),
	CONSTRAINT fk_access_tokens_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_access_tokens_user_id ON access_tokens (user_id);
CREATE TABLE grants (
	user_id INTEGER NOT NULL,
	role TEXT NOT NULL,
	kind TEXT NOT NULL,
	name TEXT NOT NULL,
	CONSTRAINT pk_grants PRIMARY KEY (user_id, role, kind, name),
	CONSTRAINT fk_grants_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
)
 WITHOUT ROWID;
