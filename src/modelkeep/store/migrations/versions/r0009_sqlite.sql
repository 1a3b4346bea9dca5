CREATE TABLE studies (
	study TEXT NOT NULL,
	number BIGINT NOT NULL,
	line TEXT NOT NULL,
	created DOUBLE NOT NULL,
	CONSTRAINT pk_studies PRIMARY KEY (study, number)
)
 WITHOUT ROWID;
